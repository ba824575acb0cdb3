"""DIPPurifier: the reconstruction as a layer in front of a classifier."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dipdefense.arguments import callback, choice, flag, integer
from dipdefense.batches import check_shape
from dipdefense.checks import (
    OutOfRange,
    Precision,
    Request,
    Seed,
    check_backend,
    check_budgets,
    check_config,
    check_request,
    check_seed,
)
from dipdefense.compiler import opaque, refuse_export
from dipdefense.config import MAX_ITERATIONS, PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.engine.backends import chosen
from dipdefense.engine.memory import Room, bytes_of_one, images_that_fit, in_chunks, room_for
from dipdefense.reconstruct import Reconstruction, fit
from dipdefense.stopping import Rule, RuleName, check_stopping, stoppable

Gradient = Literal["straight-through", "none"]
Purify = Callable[[Tensor, Seed], Tensor]

_NO_GRADIENT = (
    'DIPPurifier(gradient="none") has no gradient: its output is the end of an optimisation, not a differentiable '
    'function of the input. Use gradient="straight-through" for the identity (BPDA), or attack the classifier alone '
    "and replay"
)


class DIPPurifier(nn.Module):
    """Replace each image by an untrained network's output after ``iters`` iterations.

    Each image has a network of its own (Kattamis, Adel & Weller 2019, section 4). The reconstruction keeps what the
    network learns first, and an adversarial perturbation is learnt last. This defends against attackers who do not know
    of it; it is not robustness against those who do.

    The module has no parameters and an empty ``state_dict``, so a classifier's checkpoint still loads, and it works
    under ``no_grad``, ``inference_mode``, ``autocast`` and ``torch.func``. ``eval()`` changes nothing.
    ``torch.compile`` leaves it, and a whole ``nn.Sequential`` that contains it, uncompiled: compile the classifier by
    itself. Tracing and export raise.

    ``torch.vmap`` over a further axis reconstructs all images at once, each with its own network. An integer seed is
    every image's, a seed per image is repeated along that axis, and None gives every image a fresh one.

    Args:
        iters: iterations; the paper tests 500, 750 and 1000.
        config: the network and its optimiser; the paper's by default.
        seed: an integer for every image, whatever its position; or one per image; or None for fresh seeds at every
            call, from torch's default generator of the CPU, which ``torch.manual_seed`` seeds.
        batch_size: images fitted at once, or "auto" for as many as free memory suggests. Where memory still runs out,
            the chunk is halved and fitting continues.
        out_of_range: "raise" refuses values outside [0, 1]; "clip" clips finite ones, for attacks that step out of the
            range before they clip. The gradient stays that of unclipped values, so an attack can bring a pixel back.
        gradient: "straight-through": the backward pass is the identity (BPDA, Athalye et al. 2018), so white-box
            attacks get a usable gradient. "none": a backward pass raises.
        precision: of the convolutions' operands: "fp32", "bf16", or "auto" for bf16 on GPUs that have it and on CPUs
            with tiles for it (AMX).
        backend: "auto", "torch", "native", "cudagraphs" or "triton"; see :func:`dipdefense.reconstruct`.
        stopping: "variance", "trend" or a rule of :mod:`dipdefense.stopping`, to end each image's fit on its own before
            ``iters``; None for exactly ``iters`` iterations, as in the paper.
        progress: show a progress bar with the time left.

    Raises:
        TypeError, ValueError: an argument is outside its range, at construction; the images are not as described,
            at the call and before any work.
        RuntimeError: a call is being traced or exported.

    Shape:
        (N, C, H, W) floats in [0, 1], from 32 pixels a side, to the same shape, dtype and device.

    Example:
        >>> purifier = DIPPurifier(iters=2, config=DIPConfig.architecture_2(), seed=0)
        >>> purifier(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    immaterial: ClassVar[tuple[str, ...]] = ("batch_size", "progress")
    """The attributes that decide no output but by rounding."""

    def __init__(
        self,
        iters: int = 1000,
        *,
        config: DIPConfig | None = None,
        seed: Seed = None,
        batch_size: int | Literal["auto"] = "auto",
        out_of_range: OutOfRange = "raise",
        gradient: Gradient = "straight-through",
        precision: Precision = "auto",
        backend: Backend = "auto",
        stopping: RuleName | Rule | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        choice("out_of_range", out_of_range, get_args(OutOfRange))
        choice("gradient", gradient, get_args(Gradient))
        choice("precision", precision, get_args(Precision))
        self.config = check_config(config)
        self.stopping = check_stopping(stopping)
        if self.stopping is not None:
            backend = stoppable(backend)
        check_backend(backend, config=self.config)
        self.iters = integer("iters", iters, low=1, high=MAX_ITERATIONS)
        self.seed = check_seed(seed)
        self.batch_size = _check_batch_size(batch_size)
        self.out_of_range = out_of_range
        self.gradient = gradient
        self.precision = precision
        self.backend = backend
        self.progress = flag("progress", progress)

    @opaque
    def forward(self, images: Tensor) -> Tensor:
        """Purify: (N, C, H, W) in [0, 1] to the same shape, dtype and device."""
        refuse_export("DIPPurifier")
        rule = _StraightThrough if self.gradient == "straight-through" else _NoGradient
        return rule.apply(images, self._purify, self.seed)  # type: ignore[no-any-return]

    def _purify(self, images: Tensor, seed: Seed) -> Tensor:
        run = self.reconstruct(images, budgets=(self.iters,), seed=seed)
        diverged = [index for index, status in enumerate(run.status) if status == "diverged"]
        if diverged:
            warn_of_divergence(diverged, self.config)
        return run.images[0]

    def _request(self, images: Tensor, budgets: tuple[int, ...], *, seed: Seed) -> tuple[Request, int]:
        """The checked request with its backend, and the number of images to fit at once."""
        request = check_request(
            images, budgets=budgets, config=self.config, seed=seed,
            precision=self.precision, backend=self.backend, out_of_range=self.out_of_range,
        )  # fmt: skip
        chunk = images_that_fit(request) if self.batch_size == "auto" else self.batch_size
        # Once for all chunks: the last one may be smaller.
        return dataclasses.replace(request, backend=chosen(request.chunk(0, chunk))), chunk

    @opaque
    def reconstruct(
        self,
        images: Tensor,
        *,
        budgets: Sequence[int] = PAPER_BUDGETS,
        seed: Seed = None,
        on_iteration: Callable[[int], object] | None = None,
    ) -> Reconstruction:
        """Run once to the largest budget and return the reconstructions at every budget.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            budgets: iteration counts, ascending; none above ``iters``.
            seed: overrides the purifier's seed for this run.
            on_iteration: called after every iteration of a chunk with its number of images, those included whose fit a
                rule has ended. Once the rule has ended all of them, one more call counts the iterations that are left.
                The numbers add up to the images times the last budget, unless a chunk is repeated for lack of memory.

        Raises:
            TypeError, ValueError: before any work, if an argument is not as described.
        """
        callback("on_iteration", on_iteration, takes="one number")
        budgets = check_budgets(budgets)
        if budgets[-1] > self.iters:
            raise ValueError(f"budgets must not exceed iters={self.iters}, got {budgets[-1]}")
        request, chunk = self._request(images, budgets, seed=self.seed if seed is None else seed)
        with _progress_bar(len(images) * budgets[-1], enabled=self.progress) as advance:

            def iterated(count: int) -> None:
                advance(count)
                if on_iteration is not None:
                    on_iteration(count)

            return _in_chunks(request, chunk, iterated, self.stopping)

    def backend_for(self, images: Tensor) -> Backend:
        """The backend that would fit these images.

        On an NVIDIA GPU ``backend="auto"`` may run its trial first.

        Args:
            images: (N, C, H, W) floats in [0, 1].

        Raises:
            TypeError, ValueError: the images are not as described.
        """
        return self._request(images, (self.iters,), seed=0)[0].backend

    def room_for(self, images: Tensor) -> Room:
        """The memory that such images take, and how many of them would be fitted at once.

        Args:
            images: (N, C, H, W) floats in [0, 1], where they would be fitted.

        Raises:
            TypeError, ValueError: the images are not as described.

        Example:
            >>> DIPPurifier(config=DIPConfig.architecture_2(), batch_size=4).room_for(torch.rand(9, 3, 32, 32)).at_once
            4
        """
        request, chunk = self._request(images, (1,), seed=0)
        return room_for(request, chunk)

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return (
            f"iters={self.iters}, gradient={self.gradient!r}, precision={self.precision!r}, backend={self.backend!r}, "
            f"seed={self.seed}, out_of_range={self.out_of_range!r}"
            + ("" if self.stopping is None else f", stopping={self.stopping!r}")
        )


def warn_of_divergence(places: Sequence[int], config: DIPConfig) -> None:
    """Warn of the images whose networks diverged, by their places.

    The warning is shown at the line of the caller's caller.
    """
    warnings.warn(
        f"the networks of the images at {list(places)} diverged; these images are NaN. "
        f"Lower the learning rate ({config.learning_rate})",
        RuntimeWarning,
        stacklevel=3,
    )


def _check_batch_size(value: int | Literal["auto"]) -> int | Literal["auto"]:
    if isinstance(value, str) and value == "auto":
        return "auto"
    return integer("batch_size", value, low=1, expected='"auto" or an integer of at least 1')


@contextlib.contextmanager
def _progress_bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], object]]:
    """Yield the function to call with the number of iterations done."""
    if not enabled:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="purifying", unit="iteration", unit_scale=True) as bar:
        yield bar.update


def _in_chunks(request: Request, chunk: int, advance: Callable[[int], object], stopping: Rule | None) -> Reconstruction:
    """Fit ``chunk`` images at a time, or half as many where memory runs out."""

    def fit_part(part: slice, iterated: Callable[[], None]) -> Reconstruction:
        count = part.stop - part.start

        def on_iteration() -> None:
            iterated()
            advance(count)

        run = fit(request.chunk(part.start, part.stop), on_iteration, stopping)
        # Where all have stopped early, the rest of the budget is done too.
        if spared := count * (request.budgets[-1] - max(run.iterations, default=0)):
            advance(spared)
        return run

    images = request.images
    return Reconstruction.joined(
        in_chunks(fit_part, len(images), chunk, device=images.device, each=bytes_of_one(request))
    )


class _StraightThrough(torch.autograd.Function):
    """Forward: the purified images. Backward: the identity.

    The purification happens inside, hidden from the transforms of ``torch.func``, which can neither differentiate the
    fit nor check a batched tensor's range.
    """

    @staticmethod
    def forward(images: Tensor, purify: Purify, seed: Seed) -> Tensor:
        # Not a view, which autograd would not let the caller change in place.
        return purify(images, seed).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """The backward pass needs nothing of the forward pass."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return gradient, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # noqa: ARG004
        return tangent.view_as(tangent)

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple[int, None, None], images: Tensor, purify: Purify, seed: Seed
    ) -> tuple[Tensor, int]:
        """All images as one batch, with the seeds that separate calls would give them."""
        stacked = images.movedim(in_dims[0], 0)
        check_shape(stacked.shape[1:])
        seeds = seed * info.batch_size if isinstance(seed, tuple) else seed
        return cls.apply(stacked.flatten(0, 1), purify, seeds).unflatten(0, stacked.shape[:2]), 0


class _NoGradient(_StraightThrough):
    """Forward: the purified images. Backward: an explanation."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        raise RuntimeError(_NO_GRADIENT)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # noqa: ARG004
        raise RuntimeError(_NO_GRADIENT)
