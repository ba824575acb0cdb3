"""The outcomes of section 6's networks, each at the budget where it is at its best, held against the original's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dipdefense.config import DIPConfig
from dipdefense.evaluation import Run
from dipdefense.evaluation.statistics import Cell, Difference, Paired, compare, paired_difference, summarise
from dipdefense.paper.architecture import ORIGINAL, VARIANTS
from dipdefense.paper.labels import network

_RESAMPLES = 2000


class Peak(NamedTuple):
    """The budget with the highest mean confidence, and an interval from resampling the images.

    Attributes:
        budget: iterations.
        low: the 2.5th percentile of the resamples' peaks; a recorded budget.
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
        """The conditions that decide where the peak is: all but the clean images, if there are others."""
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
    def confidences(self) -> dict[str, np.ndarray]:
        """(budgets, images) by condition: the true class's confidence, the mean over the seeds; 0 if it diverged."""
        sums: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        for record in self.run.records:
            if record.defence == "dip":
                sums[record.condition, record.budget, record.position].append(record.confidence or 0.0)
        return {
            condition: np.array(
                [[np.mean(sums[condition, budget, image]) for image in range(self.n)] for budget in self.budgets]
            )
            for condition in self.conditions
        }

    @cached_property
    def peak(self) -> Peak:
        """Where the mean confidence under attack peaks; under several attacks, that of their average."""
        confidences = np.mean([self.confidences[name] for name in self.attacks], axis=0)
        sampled = np.random.default_rng(0).integers(self.n, size=(_RESAMPLES, self.n))
        places = np.sort(confidences[:, sampled].mean(axis=2).argmax(axis=0))
        low, high = (places[round(share * (_RESAMPLES - 1))] for share in (0.025, 0.975))
        best = int(confidences.mean(axis=1).argmax())
        return Peak(self.budgets[best], self.budgets[low], self.budgets[high])

    def at_peak(self, condition: str) -> Cell:
        """The accuracy at the peak's budget."""
        return self.cells[condition, self.peak.budget]

    def confidence(self, condition: str, budget: int) -> float:
        """The mean confidence."""
        return float(self.confidences[condition][self.budgets.index(budget)].mean())


@dataclass(frozen=True)
class Contrast:
    """A variant against the original on the same images under one condition, each at its own peak.

    Attributes:
        variant: the variant.
        condition: of both.
        difference: of the accuracies, the variant's less the original's, with the first seed.
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
    correct = [[share > 0 for share in next(iter(cell.outcomes.values())).values()] for cell in (first, second)]
    return Contrast(variant, condition, paired_difference(*correct), compare(first, second))


def neighbours(original: Outcomes, others: Sequence[Outcomes]) -> dict[str, tuple[Outcomes, Outcomes]]:
    """The nearest smaller and larger variants along each of the network's numbers that has both."""
    found = {}
    for name in ("scales", "channels", "skip_channels", "input_channels"):
        own = getattr(original.config, name)
        along = {getattr(one.config, name): one for one in others if getattr(one.config, name) != own}
        smaller, larger = [value for value in along if value < own], [value for value in along if value > own]
        if smaller and larger:
            found[name] = along[max(smaller)], along[min(larger)]
    return found
