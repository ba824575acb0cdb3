"""Whether this machine fits networks as they are written down: the defence against a plain loop in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipdefense.checks import Precision
from dipdefense.cli.plain import losses
from dipdefense.config import DIPConfig
from dipdefense.reconstruct import reconstruct

_CONFIG = DIPConfig(scales=2, channels=8)
_ITERATIONS = 4
_SEEDS = (1, 2, 3)

# Adam amplifies roundings from the second iteration on. At fp32 a learning rate that is off by a tenth, or any other
# number of the method by a little more, is beyond the tolerance.
_TOLERANCES = {"fp32": 2e-3, "bf16": 3e-2}


@dataclass(frozen=True)
class Proof:
    """The outcome.

    Attributes:
        precision: of the convolutions.
        difference: the largest relative one between the two losses of an iteration of an image.
        tolerance: what it may be.
    """

    precision: Precision
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; one that is no number is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "as the reference" if self.passed else "NOT as the reference: do not use results of this machine"
        return (
            f"{self.precision}: the losses of {len(_SEEDS)} images over {_ITERATIONS} iterations are {verdict} "
            f"(a plain loop in float64), to {self.difference:.1e} where {self.tolerance:.0e} is allowed"
        )


def prove(device: torch.device, precision: Precision) -> Proof:
    """Fit three images of odd size at once on the device, and each by the plain loop.

    torch's operators are held to it; the other backends have a trial of their own on a GPU.
    """
    ramp = torch.linspace(0, 1, 3 * 33 * 40).reshape(3, 33, 40)
    images = torch.stack([ramp, 1 - ramp**2, (20 * ramp).sin() / 2 + 0.5]).to(device)
    run = reconstruct(images, budgets=(_ITERATIONS,), config=_CONFIG, seed=_SEEDS, precision=precision, backend="torch")
    expected = torch.tensor(
        [
            losses(image, seed=seed, config=_CONFIG, iterations=_ITERATIONS)
            for image, seed in zip(images, _SEEDS, strict=True)
        ],
        dtype=torch.float64,
    )
    difference = (run.losses.T.double().cpu() / expected - 1).abs().max().item()
    return Proof(precision, difference, _TOLERANCES[precision])
