"""The outcomes of section 6's networks, held against the original's.

Each network is taken at the budget where its own confidence under attack peaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from dipdefense.config import DIPConfig
from dipdefense.evaluation import Run
from dipdefense.evaluation.curves import Curve, confidence_curves
from dipdefense.evaluation.statistics import Cell, Difference, Paired, compare, paired_difference, summarise
from dipdefense.paper.architecture import ORIGINAL, VARIANTS
from dipdefense.paper.labels import network


class Peak(NamedTuple):
    """The budget with the highest mean confidence, and its bootstrap interval.

    Attributes:
        budget: iterations.
        low: the 2.5th percentile of the peaks in resamples of the images; a recorded budget.
        high: the 97.5th.
    """

    budget: int
    low: int
    high: int


@dataclass(frozen=True)
class Outcomes:
    """One network's outcomes.

    Attributes:
        name: the variant's.
        run: its records.
    """

    name: str
    run: Run

    @property
    def title(self) -> str:
        """The variant's title."""
        return VARIANTS[self.name].title

    @property
    def config(self) -> DIPConfig:
        """The network."""
        return network(self.run)

    @cached_property
    def cells(self) -> dict[tuple[str, int], Cell]:
        """Accuracies by condition and budget; 0 is the budget of no defence."""
        return {(cell.condition, cell.budget): cell for cell in summarise(self.run.records)}

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """All conditions, in a table's order."""
        return tuple(dict.fromkeys(condition for condition, _ in self.cells))

    @property
    def attacks(self) -> tuple[str, ...]:
        """The conditions that decide the peak: all but clean, if there are others."""
        return tuple(name for name in self.conditions if name != "clean") or self.conditions

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """Of the reconstruction, ascending."""
        return tuple(sorted({budget for _, budget in self.cells if budget}))

    @property
    def n(self) -> int:
        """Images."""
        return next(iter(self.cells.values())).n

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The true class's confidence against the iterations, by condition."""
        return {curve.condition: curve for curve in confidence_curves(self.run.records)}

    @cached_property
    def peak(self) -> Peak:
        """Where the mean confidence under attack peaks, averaged over the attacks."""
        curves = [self.curves[name] for name in self.attacks]
        confidences = torch.stack([curve.confidences for curve in curves]).mean(dim=0)
        average = replace(curves[0], condition="average", confidences=confidences)
        return Peak(*map(int, average.peak))

    def at_peak(self, condition: str) -> Cell:
        """The accuracy at the peak's budget."""
        return self.cells[condition, self.peak.budget]

    def confidence(self, condition: str, budget: int) -> float:
        """The mean confidence."""
        return self.curves[condition].mean[self.budgets.index(budget)]


@dataclass(frozen=True)
class Contrast:
    """A variant against the original under one condition, each at its own peak.

    Attributes:
        variant: the variant.
        condition: of both.
        difference: of the accuracies on the same images, the variant's less the original's, with the first seed.
        split: McNemar's test of the same.
    """

    variant: Outcomes
    condition: str
    difference: Difference
    split: Paired


def outcomes(runs: Mapping[str, Run]) -> list[Outcomes]:
    """The networks' outcomes, the original's first.

    Args:
        runs: from ``measure_variants``, or read from the exports.

    Raises:
        ValueError: the original is missing, or the runs are not of the same images, conditions and budgets.
    """
    if ORIGINAL not in runs:
        raise ValueError(f"the variants are held against the network {ORIGINAL!r}, which is missing")
    found = [Outcomes(name, runs[name]) for name in (ORIGINAL, *(name for name in runs if name != ORIGINAL))]
    for other in found[1:]:
        if _measured(other) != _measured(found[0]):
            raise ValueError(
                f"{other.name} and {ORIGINAL} were measured on other images, conditions, budgets or seeds; measure all "
                "networks with one command"
            )
    return found


def _measured(one: Outcomes) -> set[tuple[str, int, int, str, str]]:
    """The conditions, budgets, seeds and images of the reconstruction's outcomes."""
    return {
        (record.condition, record.budget, record.seed, record.image, record.content)
        for record in one.run.records
        if record.defence == "dip"
    }


def contrast(variant: Outcomes, original: Outcomes, condition: str) -> Contrast:
    """Hold a variant against the original under one condition."""
    first, second = (one.at_peak(condition) for one in (variant, original))
    own, others = (next(iter(cell.outcomes.values())) for cell in (first, second))
    correct = [[shares[image] > 0 for image in own] for shares in (own, others)]
    return Contrast(variant, condition, paired_difference(*correct), compare(first, second))


def neighbours(original: Outcomes, others: Sequence[Outcomes]) -> dict[str, tuple[Outcomes, Outcomes]]:
    """The nearest smaller and larger variant along each of the network's numbers.

    A number that lacks either is left out.
    """
    found = {}
    for name in ("scales", "channels", "skip_channels", "input_channels"):
        own = getattr(original.config, name)
        along = {getattr(one.config, name): one for one in others if getattr(one.config, name) != own}
        smaller, larger = [value for value in along if value < own], [value for value in along if value > own]
        if smaller and larger:
            found[name] = along[max(smaller)], along[min(larger)]
    return found
