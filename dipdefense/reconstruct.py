"""The reconstruction of Kattamis et al. 2019, section 4: fit one untrained network an image, and stop early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipdefense.arguments import shown
from dipdefense.checks import Precision, Request, Seed, check_request
from dipdefense.compiler import opaque
from dipdefense.config import PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.engine.backends import chosen
from dipdefense.engine.fitting import Fitting, surroundings

Status = Literal["ok", "diverged"]


@dataclass(frozen=True)
class Reconstruction:
    """The outputs and losses that one run recorded.

    Attributes:
        budgets: the iteration counts at which the outputs were kept, ascending.
        images: (len(budgets), N, C, H, W) in [0, 1], in the dtype and on the device of the input. The reconstruction
            at budget k is the network's k-th output, the one whose error ``losses[k - 1]`` is.
        losses: (iterations, N) float32, each network's mean squared error at each iteration.
        status: one an image: "ok", or "diverged" where a loss was not finite; from that iteration on its
            reconstructions are NaN.
        backend: the one that fitted the networks.
    """

    budgets: tuple[int, ...]
    images: Tensor
    losses: Tensor
    status: tuple[Status, ...]
    backend: Backend

    @classmethod
    def joined(cls, parts: Sequence[Reconstruction]) -> Reconstruction:
        """The runs of several chunks of images as one."""
        return cls(
            parts[0].budgets,
            torch.cat([part.images for part in parts], dim=1),
            torch.cat([part.losses for part in parts], dim=1),
            tuple(status for part in parts for status in part.status),
            parts[0].backend,
        )

    def __repr__(self) -> str:
        """The budgets, shapes and what diverged; not a page of pixels."""
        diverged = self.status.count("diverged")
        return (
            f"Reconstruction(budgets={self.budgets}, images={tuple(self.images.shape)}, "
            f"losses={tuple(self.losses.shape)}, diverged={diverged} of {len(self.status)})"
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
    on_iteration: Callable[[], object] | None = None,
) -> Reconstruction:
    """Fit a network of its own to every image, all of them at once, and record their outputs at each budget.

    A network's input is fixed uniform noise, to which Gaussian noise is added afresh at every iteration. The loss is
    the mean squared error to the image, the optimiser Adam (Ulyanov et al. 2017, equation 2; Kattamis et al. 2019,
    appendix A.2).

    On a CPU with glibc, freed memory stays with the process until the run ends (:mod:`dipdefense.engine.heap`).

    Args:
        images: (N, C, H, W) floats in [0, 1], H and W at least 32 pixels.
        budgets: iteration counts to record, each at least 1. One run to the largest serves them all.
        config: the method's numbers; the paper's by default.
        seed: an integer that every image uses, whatever its position; or one an image; or none for fresh ones from
            torch's default generator of the CPU. With a seed, no global generator is touched.
        precision: "fp32"; "bf16" for the convolutions' operands (parameters, statistics and loss stay fp32); "auto"
            takes bf16 on a GPU that has it and on a CPU that multiplies it in tiles (AMX).
        backend: "torch"; on a CPU, "native" for kernels between torch's convolutions, which a C++ compiler makes at the
            first use (:mod:`dipdefense.native`); on an NVIDIA GPU, "cudagraphs" for torch's operators replayed from a
            CUDA graph, or "triton" for hand-written kernels in one. "auto" takes "native" on a CPU where there is a
            compiler and the kernels do what torch's operators do. On an NVIDIA GPU it tries each backend once and
            takes the fastest whose results are right (:mod:`dipdefense.engine.backends`). None but "torch" has yet
            been run on a GPU. Initial weights and fixed noise are the same for all. The fresh noise of "native" and of
            "triton" has a generator of its own, so that one seed gives other reconstructions. Name the backend where a
            seed must reproduce.
        on_iteration: called after every iteration; a GPU may not have finished it yet.

    Raises:
        TypeError, ValueError: the input is not as described; nothing has been computed yet.

    Example:
        >>> run = reconstruct(torch.rand(2, 3, 32, 32), budgets=(1, 2), config=DIPConfig.architecture_2(), seed=0)
        >>> run.images.shape, run.status
        (torch.Size([2, 2, 3, 32, 32]), ('ok', 'ok'))
    """
    request = check_request(images, budgets=budgets, config=config, seed=seed, precision=precision, backend=backend)
    if not (on_iteration is None or callable(on_iteration)):
        raise TypeError(f"on_iteration must be a function of no arguments, got {shown(on_iteration)}")
    return fit(request, on_iteration or (lambda: None))


def fit(request: Request, on_iteration: Callable[[], object]) -> Reconstruction:
    """:func:`reconstruct` for a request that was checked."""
    images, budgets, backend = request.images, request.budgets, chosen(request)
    with surroundings(images.device):
        outputs = images.new_empty(len(budgets), *images.shape)
        losses = torch.zeros(budgets[-1], len(images), device=images.device)
        if len(images) == 0:
            return Reconstruction(budgets, outputs, losses, (), backend)
        networks = Fitting(request, backend)
        for iteration in range(1, budgets[-1] + 1):
            networks()
            losses[iteration - 1] = networks.losses
            if iteration in budgets:
                outputs[budgets.index(iteration)] = networks.outputs
            on_iteration()
        finite = losses.isfinite().all(dim=0).tolist()
    return Reconstruction(budgets, outputs, losses, tuple("ok" if fine else "diverged" for fine in finite), backend)
