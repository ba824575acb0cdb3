"""The reconstruction of Kattamis et al. 2019, section 4.

It fits one untrained network to each image, and stops early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from dipdefense.arguments import callback, shown
from dipdefense.checks import Precision, Request, Seed, check_request
from dipdefense.compiler import opaque
from dipdefense.config import PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.engine.backends import chosen
from dipdefense.engine.fitting import Fitting, surroundings
from dipdefense.reduction import enlarged
from dipdefense.stopping import Rule, RuleName, check_stopping, stoppable

Status = Literal["ok", "diverged"]


@dataclass(frozen=True)
class Reconstruction:
    """The outputs and losses that one run recorded.

    Attributes:
        budgets: the iteration counts at which the outputs were kept, ascending.
        images: (len(budgets), N, C, H, W) in [0, 1], in the dtype and on the device of the input. The reconstruction
            at budget k is the network's k-th output, whose error is ``losses[k - 1]``. After a rule has ended the fit,
            it is the output of iteration ``stopped``.
        losses: (iterations, N) float32, each network's mean squared error at each iteration, to the smaller image where
            the configuration has a reduction; NaN after a rule has ended the fit.
        status: one per image: "ok", or "diverged" where a loss was not finite; from that iteration on, the image's
            reconstructions are NaN.
        backend: the one that fitted the networks.
        stopped: one per image: the iteration whose output is the reconstruction at the last budget. It is that budget
            itself by default, and where no rule ended the fit.
        iterations: one per image: the iterations that its network was fitted for. A rule ends a fit some iterations
            after the one that it chooses.
    """

    budgets: tuple[int, ...]
    images: Tensor
    losses: Tensor
    status: tuple[Status, ...]
    backend: Backend
    stopped: tuple[int, ...] = ()
    iterations: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the last budget where no rule has ended a fit."""
        whole = (self.budgets[-1],) * len(self.status)
        for name in ("stopped", "iterations"):
            object.__setattr__(self, name, getattr(self, name) or whole)

    @property
    def final_losses(self) -> Tensor:
        """(N,) float32: the errors of the reconstructions at the last budget."""
        rows = torch.tensor(self.stopped, dtype=torch.int64, device=self.losses.device) - 1
        return self.losses.gather(0, rows[None])[0]

    @classmethod
    def joined(cls, parts: Sequence[Reconstruction]) -> Reconstruction:
        """The runs of several chunks of images as one."""
        return cls(
            parts[0].budgets,
            torch.cat([part.images for part in parts], dim=1),
            torch.cat([part.losses for part in parts], dim=1),
            tuple(status for part in parts for status in part.status),
            parts[0].backend,
            tuple(stopped for part in parts for stopped in part.stopped),
            tuple(iterations for part in parts for iterations in part.iterations),
        )

    def at(self, budget: int) -> Self:
        """The run as one to this budget alone would have been.

        Args:
            budget: one of ``budgets``.

        Raises:
            ValueError: it is none of them.

        Example:
            >>> run = reconstruct(torch.rand(2, 3, 32, 32), budgets=(1, 2), config=DIPConfig.architecture_2(), seed=0)
            >>> run.at(1).losses.shape, run.at(1).stopped
            (torch.Size([1, 2]), (1, 1))
        """
        if budget not in self.budgets:
            raise ValueError(f"budget must be one of {self.budgets}, got {shown(budget)}")
        ended = [iterations <= budget for iterations in self.iterations]
        iterations = tuple(min(count, budget) for count in self.iterations)
        losses = self.losses[:budget]
        return replace(
            self,
            budgets=(budget,),
            images=self.images[self.budgets.index(budget)][None],
            losses=losses,
            status=_status(losses, iterations),
            stopped=tuple(stop if end else budget for stop, end in zip(self.stopped, ended, strict=True)),
            iterations=iterations,
        )

    def __repr__(self) -> str:
        """The budgets, shapes and what diverged; not a page of pixels."""
        diverged = self.status.count("diverged")
        early = sum(iterations < self.budgets[-1] for iterations in self.iterations)
        return (
            f"Reconstruction(budgets={self.budgets}, images={tuple(self.images.shape)}, "
            f"losses={tuple(self.losses.shape)}, diverged={diverged} of {len(self.status)}"
            + (f", ended early={early})" if early else ")")
        )


@opaque
def reconstruct(
    images: Tensor,
    *,
    budgets: Sequence[int] = PAPER_BUDGETS,
    config: DIPConfig | None = None,
    seed: Seed = None,
    precision: Precision = "auto",
    backend: Backend = "auto",
    stopping: RuleName | Rule | None = None,
    on_iteration: Callable[[], object] | None = None,
) -> Reconstruction:
    """Fit an untrained network to each image, and record the outputs at each budget.

    All networks are fitted at once. A network's input is fixed uniform noise, to which Gaussian noise is added afresh
    at every iteration. The loss is the mean squared error to the image, and the optimiser is Adam (Ulyanov et al. 2017,
    equation 2; Kattamis et al. 2019, appendix A.2).

    On a CPU with glibc, freed memory stays with the process until the run ends (:mod:`dipdefense.engine.heap`).

    Args:
        images: (N, C, H, W) floats in [0, 1], H and W at least 32 pixels.
        budgets: iteration counts to record, each at least 1. One run to the largest serves them all.
        config: the method's numbers; the paper's by default.
        seed: an integer for every image, whatever its position; or one per image; or None for fresh ones from torch's
            default generator of the CPU. With a seed, no global generator is touched.
        precision: "fp32", whose operands a GPU may round to TF32, as torch's settings allow; "bf16" for the
            convolutions' operands (parameters, statistics and loss stay fp32); "auto" takes bf16 on a GPU that has it
            and on a CPU that multiplies it in tiles (AMX).
        backend: "torch" for torch's operators; on a CPU, "native" for kernels compiled from C++ at the first use, for
            whole iterations or for what lies between torch's convolutions (:mod:`dipdefense.native`); on an NVIDIA GPU,
            "cudagraphs" for torch's operators replayed from a CUDA graph, or "triton" for hand-written kernels replayed
            likewise. "auto" tries a GPU's backends once and takes the fastest whose results are right
            (:mod:`dipdefense.engine.backends`); elsewhere it is "torch". None has been run on a GPU yet. All have the
            same initial weights and fixed noise, but "native" and "triton" generate the fresh noise in their own ways
            ("native" in bf16 in another where it does whole iterations), and the same seed gives other
            reconstructions. Name the backend where a seed must reproduce, and on a GPU call
            ``torch.use_deterministic_algorithms(True)`` too: otherwise cuDNN may add up gradients in another order
            each time.
        stopping: "variance", "trend" or a rule of :mod:`dipdefense.stopping`, to end each image's fit on its own, at
            the last budget at the latest. The image leaves the batch, which changes nothing for the others. None, the
            default, is the paper's fixed budgets. With a rule, backend must be "torch" or "auto", which then is
            "torch".
        on_iteration: called after every iteration; a GPU may not have finished it yet.

    Raises:
        TypeError, ValueError: before any work, if an argument is not as described.

    Example:
        >>> run = reconstruct(torch.rand(2, 3, 32, 32), budgets=(1, 2), config=DIPConfig.architecture_2(), seed=0)
        >>> run.images.shape, run.status
        (torch.Size([2, 2, 3, 32, 32]), ('ok', 'ok'))
    """
    callback("on_iteration", on_iteration, takes="no arguments")
    rule = check_stopping(stopping)
    request = check_request(
        images, budgets=budgets, config=config, seed=seed, precision=precision,
        backend=backend if rule is None else stoppable(backend),
    )  # fmt: skip
    return fit(request, on_iteration or (lambda: None), rule)


def fit(request: Request, on_iteration: Callable[[], object], rule: Rule | None = None) -> Reconstruction:
    """:func:`reconstruct` for a request that was checked."""
    if request.config.reduction == 1:
        return _fit(request, on_iteration, rule)
    run = _fit(request.reduced(), on_iteration, rule)
    return replace(run, images=enlarged(run.images, request.images.shape[2:]).to(request.images.dtype))


def _fit(request: Request, on_iteration: Callable[[], object], rule: Rule | None) -> Reconstruction:
    images, budgets, backend = request.images, request.budgets, chosen(request)
    with surroundings(images.device):
        outputs = images.new_empty(len(budgets), *images.shape)
        losses = torch.full((budgets[-1], len(images)), torch.nan, dtype=torch.float32, device=images.device)
        if len(images) == 0:
            return Reconstruction(budgets, outputs, losses, (), backend)
        networks = Fitting(request, backend)
        ends = _Ends(networks, rule)
        for iteration in range(1, budgets[-1] + 1):
            networks()
            losses[iteration - 1, ends.fitted] = networks.losses
            ends(iteration)
            if iteration in budgets:
                outputs[budgets.index(iteration)] = ends.reconstructions()
            on_iteration()
            if ends.all_ended:
                outputs[sum(budget <= iteration for budget in budgets) :] = ends.reconstructions()
                break
    stopped, iterations = ends.counts(budgets[-1])
    return Reconstruction(budgets, outputs, losses, _status(losses, iterations), backend, stopped, iterations)


@dataclass(frozen=True)
class Initial:
    """The random parts of a fit, for other implementations of its iterations.

    Attributes:
        weights: of all networks by name, each (N, …), in the layouts of :mod:`dipdefense.engine.network`.
        noise: (N, input_channels, H, W), the fixed part of the networks' input; H and W are those after a reduction.
        generators: one per image, for the fresh noise of each iteration: N(0, noise_std²) in the shape of ``noise``.
    """

    weights: dict[str, Tensor]
    noise: Tensor
    generators: list[torch.Generator]


def initial(request: Request) -> Initial:
    """The random parts of :func:`fit`, by torch's operators.

    The same seeds give the same parts.
    """
    fitting = Fitting(request.reduced(), "torch")
    weights = {name: parameter.detach().clone() for name, parameter in fitting.networks.named_parameters()}
    return Initial(weights, fitting.fixed_noise, fitting.generators)


class _Ends:
    """The fits that a rule has ended, and those that continue.

    Attributes:
        fitted: index of the images that are still fitted, in the networks' order.
        all_ended: whether none is.
    """

    def __init__(self, networks: Fitting, rule: Rule | None) -> None:
        count = len(networks.target)
        self.fitted: slice | Tensor = slice(None)
        self.all_ended = False
        self._networks = networks
        self._watch = None if rule is None else rule.watch(networks.target)
        self._rows = torch.arange(count, device="cpu")
        self._stopped, self._iterations = torch.zeros(2, count, dtype=torch.int64, device="cpu")
        self._ended: Tensor | None = None

    def __call__(self, iteration: int) -> None:
        """Judge the networks' last iteration, and drop those whose fit ends with it."""
        if self._watch is None:
            return
        ending = self._watch(iteration, self._networks.outputs)
        if not ending.any():
            return
        images, here = self._rows[ending], ending.to(self._networks.outputs.device)
        self._stopped[images], self._iterations[images] = self._watch.stopped[ending], iteration
        if self._ended is None:
            self._ended = self._networks.outputs.clone()
        self._ended[images] = self._watch.outputs[here]
        self.all_ended = bool(ending.all())
        self._rows = self.fitted = self._rows[~ending]
        if not self.all_ended:
            left = (~ending).nonzero()[:, 0]
            self._watch.keep(left)
            self._networks.keep(left)

    def reconstructions(self) -> Tensor:
        """(N, C, H, W) fp32: every image's reconstruction after this iteration."""
        if self._ended is None:
            return self._networks.outputs
        if not self.all_ended:
            self._ended[self._rows] = self._networks.outputs
        return self._ended

    def counts(self, last: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """``stopped`` and ``iterations`` of the finished run.

        They are ``last``, the last budget, for the fits that no rule has ended.
        """
        whole = self._iterations == 0
        self._stopped[whole] = self._iterations[whole] = last
        return tuple(self._stopped.tolist()), tuple(self._iterations.tolist())


def _status(losses: Tensor, iterations: Sequence[int]) -> tuple[Status, ...]:
    """One per image, by its losses while its network was fitted."""
    done = torch.arange(len(losses), device=losses.device)[:, None] < torch.tensor(iterations, device=losses.device)
    finite = (losses.isfinite() | ~done).all(dim=0).tolist()
    return tuple("ok" if fine else "diverged" for fine in finite)
