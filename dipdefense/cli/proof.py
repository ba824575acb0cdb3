"""Whether the defence on this machine agrees with a plain loop in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipdefense.checks import Precision
from dipdefense.cli.plain import losses
from dipdefense.config import DIPConfig
from dipdefense.modes import without_tf32
from dipdefense.reconstruct import reconstruct

_CONFIG = DIPConfig(scales=2, channels=8)
_ITERATIONS = 4
_SEEDS = (1, 2, 3)

# Adam amplifies rounding errors from the second iteration on. At fp32 a learning rate that is off by a tenth exceeds
# the tolerance, and so do slightly larger errors of the method's other numbers.
_TOLERANCES = {"fp32": 2e-3, "bf16": 3e-2}


@dataclass(frozen=True)
class Proof:
    """The outcome of the comparison in one precision.

    Attributes:
        precision: of the convolutions.
        difference: the largest relative difference between the two losses, over images and iterations.
        tolerance: the largest difference that passes.
    """

    precision: Precision
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "as the reference" if self.passed else "NOT as the reference: do not use results of this machine"
        return (
            f"{self.precision}: the losses of {len(_SEEDS)} images over {_ITERATIONS} iterations are {verdict} "
            f"(a plain loop in float64); relative difference {self.difference:.1e}, allowed {self.tolerance:.0e}"
        )


def prove(device: torch.device, precision: Precision) -> Proof:
    """Fit three images of 33×40 pixels at once, and each by the plain loop.

    This checks torch's operators; on a GPU the other backends are tried against these before their first use.
    """
    ramp = torch.linspace(0, 1, 3 * 33 * 40).reshape(3, 33, 40)
    images = torch.stack([ramp, 1 - ramp**2, (20 * ramp).sin() / 2 + 0.5]).to(device)
    with without_tf32():
        run = reconstruct(
            images, budgets=(_ITERATIONS,), config=_CONFIG, seed=_SEEDS, precision=precision, backend="torch"
        )
    expected = torch.tensor(
        [
            losses(image, seed=seed, config=_CONFIG, iterations=_ITERATIONS)
            for image, seed in zip(images, _SEEDS, strict=True)
        ],
        dtype=torch.float64,
    )
    difference = (run.losses.T.double().cpu() / expected - 1).abs().max().item()
    return Proof(precision, difference, _TOLERANCES[precision])
