"""The bootstrap over images, which are the independent units everywhere.

Its random numbers have a fixed seed: a report written twice is the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 10_000
"""Samples of a bootstrap, and of a test whose possibilities are too many to count."""


class Estimate(NamedTuple):
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """To two decimals, such as "0.62 [0.48, 0.75]"."""
        return f"{self.value:z.2f} [{self.low:z.2f}, {self.high:z.2f}]"


def resampled_means(values: Tensor, *, seed: int = 0) -> Tensor:
    """The means over images sampled with replacement.

    Args:
        values: (images, …).
        seed: numbers of other images need another one.

    Returns:
        (RESAMPLES, …) float64, the same images in each row whatever the values.
    """
    n = len(values)
    chance = torch.Generator().manual_seed(seed)
    sampled = torch.randint(n, (RESAMPLES, n), generator=chance, device="cpu")
    times = torch.zeros(RESAMPLES, n, dtype=torch.float64, device="cpu")
    times.scatter_add_(1, sampled, torch.ones_like(sampled, dtype=torch.float64))
    return times @ values.double() / n


def interval(means: Tensor) -> Tensor:
    """(2, …): both ends of the 95 % percentile interval of resampled means."""
    return means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
