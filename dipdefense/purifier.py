"""DIPPurifier: the reconstruction as a layer in front of a classifier."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dipdefense.checks import (
    Precision,
    Seed,
    check_backend,
    check_budgets,
    check_config,
    check_images,
    check_seed,
    operand_dtype,
    resolve_seeds,
)
from dipdefense.config import PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.engine.memory import bytes_per_image, images_that_fit, in_chunks
from dipdefense.reconstruct import Reconstruction, reconstruct

Gradient = Literal["straight-through", "none"]


class DIPPurifier(nn.Module):
    """Replace every image by what its own untrained network has drawn of it after ``iters`` iterations.

    Kattamis, Adel & Weller 2019, section 4: the drawing keeps what the network learns first, and an adversarial
    perturbation is learnt last. That is evidence against attackers who do not know of the defence; it is no
    robustness against those who do.

    The module has no parameters and an empty ``state_dict``, so a classifier's checkpoint still loads, and it works
    under ``no_grad``, ``inference_mode`` and ``autocast``. ``eval()`` changes nothing: fitting is what it does.

    Args:
        iters: iterations; the paper tests 500, 750 and 1000.
        config: the network and its optimiser; the paper's by default.
        seed: an integer that every image uses, so that a result depends on no position; or one an image; or None,
            fresh seeds at every call from torch's default generator, which ``torch.manual_seed`` governs.
        batch_size: images fitted at once, or "auto" to size it from free memory. Where memory runs out all the same
            the chunk is halved and the work goes on.
        gradient: "straight-through": the backward pass is the identity (BPDA, Athalye et al. 2018), so white-box
            attacks get a usable gradient. "none": a backward pass raises.
        precision: of the convolutions' operands: "fp32", "bf16", or "auto" for bf16 on GPUs that have it.
        backend: "torch"; or, on an NVIDIA GPU, "cudagraphs" or "triton", neither of which has yet been run on one;
            see :func:`dipdefense.reconstruct.reconstruct`.
        progress: show a progress bar with the time left.

    Raises:
        TypeError, ValueError: an argument is outside its range, at construction; the images are not as described,
            at the call and before any work.

    Shape:
        (N, C, H, W) floats in [0, 1], from 32 pixels a side, to the same shape, dtype and device.

    Example:
        >>> purifier = DIPPurifier(iters=2, config=DIPConfig.architecture_2(), seed=0)
        >>> purifier(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        iters: int = 1000,
        *,
        config: DIPConfig | None = None,
        seed: Seed = None,
        batch_size: int | Literal["auto"] = "auto",
        gradient: Gradient = "straight-through",
        precision: Precision = "auto",
        backend: Backend = "torch",
        progress: bool = False,
    ) -> None:
        super().__init__()
        (self.iters,) = check_budgets((iters,))
        if batch_size != "auto" and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f'batch_size must be "auto" or an integer of at least 1, got {batch_size!r}')
        if gradient not in ("straight-through", "none"):
            raise ValueError(f'gradient must be "straight-through" or "none", got {gradient!r}')
        operand_dtype(precision, torch.device("cpu"))
        check_backend(backend)
        check_seed(seed)
        self.config = check_config(config)
        self.seed = seed
        self.batch_size = batch_size
        self.gradient = gradient
        self.precision = precision
        self.backend = backend
        self.progress = progress

    def forward(self, images: Tensor) -> Tensor:
        """Purify: (N, C, H, W) in [0, 1] to the same shape, dtype and device."""
        run = self.reconstruct(images, budgets=(self.iters,))
        diverged = [index for index, status in enumerate(run.status) if status == "diverged"]
        if diverged:
            warnings.warn(
                f"the networks of the images at {diverged} diverged; these images are NaN. "
                f"Lower the learning rate ({self.config.learning_rate})",
                RuntimeWarning,
                stacklevel=2,
            )
        rule = _StraightThrough if self.gradient == "straight-through" else _NoGradient
        return rule.apply(images, run.images[0])  # type: ignore[no-any-return]

    def reconstruct(
        self,
        images: Tensor,
        *,
        budgets: Sequence[int] = PAPER_BUDGETS,
        seed: Seed = None,
    ) -> Reconstruction:
        """Run once to the largest budget and return the drawings at every budget.

        Args:
            images: (N, C, H, W) floats in [0, 1].
            budgets: iteration counts, ascending; none above ``iters``.
            seed: overrides the purifier's seed for this run.

        Raises:
            TypeError, ValueError: before any work, if the images, budgets or seeds are not as described.
        """
        budgets = check_budgets(budgets)
        if budgets[-1] > self.iters:
            raise ValueError(f"budgets must not exceed iters={self.iters}, got {budgets}")
        check_images(images, self.config)
        operands = operand_dtype(self.precision, images.device)
        check_backend(self.backend, images.device)
        seeds = resolve_seeds(self.seed if seed is None else seed, len(images))
        chunk = self.batch_size
        if chunk == "auto":
            chunk = images_that_fit(self.config, images, operands, backend=self.backend)
        with _progress_bar(len(images) * budgets[-1], enabled=self.progress) as advance:
            return _in_chunks(
                images, seeds, chunk, advance,
                budgets=budgets, config=self.config, precision=self.precision, backend=self.backend,
            )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return (
            f"iters={self.iters}, gradient={self.gradient!r}, precision={self.precision!r}, backend={self.backend!r}, "
            f"seed={self.seed}"
        )


@contextlib.contextmanager
def _progress_bar(total: int, *, enabled: bool) -> Iterator[Callable[[int], object]]:
    """Yield what to call with the number of iterations done."""
    if not enabled:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="purifying", unit="iteration", unit_scale=True) as bar:
        yield bar.update


def _in_chunks(
    images: Tensor, seeds: Sequence[int], chunk: int, advance: Callable[[int], object], **settings: Any
) -> Reconstruction:
    """Reconstruct ``chunk`` images at a time, or half as many where memory runs out."""

    def fit(part: slice, iterated: Callable[[], None]) -> Reconstruction:
        def on_iteration() -> None:
            iterated()
            advance(part.stop - part.start)

        return reconstruct(images[part], seed=seeds[part], on_iteration=on_iteration, **settings)

    _, channels, height, width = images.shape
    operands = operand_dtype(settings["precision"], images.device)
    each = bytes_per_image(settings["config"], channels, height, width, operands, backend=settings["backend"])
    parts = in_chunks(fit, len(images), chunk, device=images.device, each=each)
    return Reconstruction(
        parts[0].budgets,
        torch.cat([part.images for part in parts], dim=1),
        torch.cat([part.losses for part in parts], dim=1),
        sum((part.status for part in parts), ()),
    )


class _StraightThrough(torch.autograd.Function):
    """Forward: the purified images. Backward: the identity."""

    @staticmethod
    def forward(images: Tensor, purified: Tensor) -> Tensor:  # noqa: ARG004
        return purified.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is needed of the forward pass."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


class _NoGradient(_StraightThrough):
    """Forward: the purified images. Backward: an explanation."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        raise RuntimeError(
            'DIPPurifier(gradient="none") has no gradient: its output is the end of an optimisation, not a '
            'differentiable function of the input. Use gradient="straight-through" for the identity (BPDA), or '
            "attack the classifier alone and replay"
        )
