"""Perturbations of low frequencies alone.

A reconstruction that is stopped early keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.arguments import real
from dipdefense.attacks.adaptive.bpda import BPDA
from dipdefense.attacks.adaptive.task import Task
from dipdefense.attacks.adaptive.threat import Ball

# Alternating projections approach the common points of the ball and the basis; scaling removes what then exceeds ε.
_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class LowFrequency(BPDA):
    """BPDA whose perturbation lies in the lowest frequencies (Guo et al. 2018).

    The frequencies are those of the discrete cosine transform. A network learns low frequencies first (Ulyanov et al.
    2017; Chakrabarty & Maji 2019), so a reconstruction that is stopped early keeps such a perturbation. Every step is
    projected on the basis; only where a pixel is clipped to [0, 1] does the perturbation leave it.

    Attributes:
        kept: the lowest frequencies that may be used, as a part of each axis, in (0, 1].
    """

    kept: float = 0.25

    def __post_init__(self) -> None:
        """Refuse hyperparameters outside their range, before any work."""
        super().__post_init__()
        real("kept", self.kept, expected="a number in (0, 1]", holds=lambda x: 0 < x <= 1)

    def _ball(self, task: Task) -> Ball:
        return LowFrequencyBall(task.clean, task.ball.threat, self.kept)


@dataclass(frozen=True)
class LowFrequencyBall(Ball):
    """The images of a ball whose perturbations lie in the lowest frequencies.

    Attributes:
        kept: the part of each axis's frequencies.
    """

    kept: float

    def project(self, images: Tensor) -> Tensor:
        """The images brought into the ball and the basis by alternating projections.

        They are close to the nearest such images. Only where a pixel is clipped to [0, 1] do they leave the basis.
        """
        change = low_pass(images - self.clean, self.kept)
        for _ in range(_ROUNDS):
            change = low_pass(super().project(self.clean + change) - self.clean, self.kept)
        if self.threat.norm == "Linf":
            # Scaling keeps the basis, and clipping would not.
            largest = change.abs().amax(dim=(1, 2, 3), keepdim=True)
            change = change * (self.threat.radius / largest.clamp(min=self.threat.radius))
        return super().project(self.clean + change)

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of unit norm along the low frequencies of the gradient."""
        return super().direction(low_pass(gradient, self.kept))


def low_pass(images: Tensor, kept: float) -> Tensor:
    """Images (N, C, H, W) without the frequencies above that part of each axis.

    Example:
        >>> image = torch.rand(1, 1, 8, 8)
        >>> torch.allclose(low_pass(image, 1.0), image, atol=1e-6)
        True
    """
    rows, columns = (_basis(side, kept).to(images) for side in images.shape[2:])
    return rows.T @ (rows @ images @ columns.T) @ columns


def _basis(side: int, kept: float) -> Tensor:
    """The lowest rows of the orthonormal DCT-II matrix, (kept · side, side).

    There is at least the row of the mean.
    """
    count = max(1, round(kept * side))
    frequency, place = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi * (place + 0.5) * frequency / side) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis
