"""The true class's confidence against iterations: means, bands, peaks and tests.

Bands are bootstrap intervals, and the tests are permutation tests. Images are the independent units everywhere. The
random numbers of a band or a test have a fixed seed: a report written twice is the same.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from dipdefense.evaluation.bootstrap import RESAMPLES, Estimate, interval, resampled_means
from dipdefense.evaluation.protocol import condition_order
from dipdefense.evaluation.records import Record

# All signs of up to 13 images are fewer than RESAMPLES.
_COUNTED = 13


@dataclass(frozen=True)
class Curve:
    """One condition's confidences by iteration.

    Attributes:
        condition: as in the records.
        budgets: iterations, ascending.
        images: ids.
        confidences: (images, budgets) float64 in [0, 1]: the true class's, the mean over seeds; 0 where the
            classifier's output was not finite.
        undefended: (images,) the same of the image itself, or None where that was not measured.
    """

    condition: str
    budgets: tuple[int, ...]
    images: tuple[str, ...]
    confidences: Tensor
    undefended: Tensor | None

    @property
    def n(self) -> int:
        """Images."""
        return len(self.images)

    @property
    def mean(self) -> list[float]:
        """The mean over the images at each budget."""
        found: list[float] = self.confidences.mean(dim=0).tolist()
        return found

    @cached_property
    def band(self) -> tuple[list[float], list[float]]:
        """Both ends of the mean's 95 % percentile interval at each budget."""
        low, high = interval(self._resampled).tolist()
        return low, high

    def at(self, budget: int) -> Estimate:
        """The mean confidence at a budget.

        Raises:
            ValueError: it was not measured.
        """
        place = self.budgets.index(budget)
        low, high = self.band
        return Estimate(self.mean[place], low[place], high[place])

    @property
    def peak(self) -> Estimate:
        """The iterations at which the mean is highest.

        The interval is that of the resampled means' peaks.
        """
        budgets = torch.tensor(self.budgets, dtype=torch.float64)
        peaks = budgets[self._resampled.argmax(dim=1)]
        low, high = peaks.quantile(0.025, interpolation="lower"), peaks.quantile(0.975, interpolation="higher")
        return Estimate(self.budgets[int(self.confidences.mean(dim=0).argmax())], low.item(), high.item())

    @property
    def peaks(self) -> list[int]:
        """The iterations at which each image's own curve is highest, the first of equals."""
        return [self.budgets[place] for place in self.confidences.argmax(dim=1).tolist()]

    @cached_property
    def _resampled(self) -> Tensor:
        """(RESAMPLES, budgets) means of images sampled with replacement."""
        return resampled_means(self.confidences)


def confidence_curves(records: Iterable[Record]) -> list[Curve]:
    """The curve of each condition behind the reconstruction, in the order of tables.

    Args:
        records: of one run.

    Raises:
        ValueError: an image lacks an outcome that another has.
    """
    found: dict[tuple[str, str], dict[int, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for record in sorted(records, key=lambda record: (record.position, record.budget)):
        by_image = found[record.condition, record.defence][record.budget]
        by_image.setdefault(record.image, []).append(record.confidence or 0.0)
    made = []
    for condition in sorted({name for name, defence in found if defence == "dip"}, key=condition_order):
        defended, undefended = found[condition, "dip"], found.get((condition, "none"))
        budgets = tuple(sorted(defended))
        images = tuple(defended[budgets[0]])
        everything = [*defended.values(), *(undefended or {}).values()]
        if any(set(by_image) != set(images) for by_image in everything):
            raise ValueError(f"some outcomes of {condition} are of fewer images than others; finish the run first")
        if any(len(set(map(len, by_image.values()))) > 1 for by_image in everything):
            raise ValueError(f"some images have fewer seeds than others under {condition}; finish the run first")
        rows = [[fmean(defended[budget][image]) for budget in budgets] for image in images]
        alone = [fmean(undefended[0][image]) for image in images] if undefended else None
        made.append(
            Curve(
                condition,
                budgets,
                images,
                torch.tensor(rows, dtype=torch.float64),
                None if alone is None else torch.tensor(alone, dtype=torch.float64),
            )
        )
    return made


def largest_mean_p(differences: Tensor) -> float:
    """The one-sided p of the largest mean difference, were none above zero.

    Flipping all of an image's signs at once leaves its differences as likely as they were, if they lie about zero. The
    largest mean is compared with the largest of the flipped ones, which accounts for the choice of the largest
    (Westfall and Young 1993). All flips are counted up to 13 images, and 10,000 sampled beyond.

    Args:
        differences: (images, comparisons).

    Example:
        >>> largest_mean_p(torch.ones(5, 3))
        0.03125
    """
    n = len(differences)
    differences = differences.double()
    observed = differences.mean(dim=0).amax()
    if n <= _COUNTED:
        signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=n)), dtype=torch.float64)
    else:
        chance = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (RESAMPLES, n), generator=chance, dtype=torch.float64, device="cpu") * 2 - 1
    flipped = (signs @ differences / n).amax(dim=1)
    # A rounding apart is equal.
    as_large = int((flipped >= observed - 1e-12).sum())
    return as_large / len(signs) if n <= _COUNTED else (as_large + 1) / (len(signs) + 1)


def exchanged_p(values: Sequence[Sequence[float]]) -> float:
    """The p of the conditions' differences in mean, were all alike to every image.

    An image's values are exchanged among the conditions, 10,000 times at random; the means' variance is compared. It is
    Friedman's test on the values themselves.

    Args:
        values: one sequence an image, with a value for each condition.

    Raises:
        ValueError: there are fewer than two conditions, or no images.

    Example:
        >>> exchanged_p([[100.0, 200.0]] * 20) < 0.001
        True
    """
    table = torch.tensor(values, dtype=torch.float64)
    if table.ndim != 2 or len(table) == 0 or table.shape[1] < 2:
        raise ValueError(f"the comparison needs images by at least two conditions, got {tuple(table.shape)}")
    chance = torch.Generator().manual_seed(0)
    order = torch.rand(RESAMPLES, *table.shape, generator=chance, device="cpu").argsort(dim=2)
    exchanged = table.expand(RESAMPLES, -1, -1).gather(2, order).mean(dim=1).var(dim=1)
    observed = table.mean(dim=0).var()
    as_large = int((exchanged >= observed * (1 - 1e-12)).sum()) if observed > 0 else RESAMPLES
    return (as_large + 1) / (RESAMPLES + 1)
