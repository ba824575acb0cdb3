"""Accuracies: the cells of a table, intervals, paired tests, spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple

from dipdefense.evaluation.protocol import DEFENCES, attack_named, condition_order
from dipdefense.evaluation.records import Record


class Interval(NamedTuple):
    """A confidence interval of a share, both ends in [0, 1]."""

    low: float
    high: float


class Paired(NamedTuple):
    """An exact McNemar test.

    Attributes:
        only_first: images that the first alone classifies correctly.
        only_second: images that the second alone classifies correctly.
        p: two-sided probability of a split at least as uneven, were neither better.
    """

    only_first: int
    only_second: int
    p: float


class Difference(NamedTuple):
    """A difference of two shares of the same images, with its 95 % interval.

    All three lie in [-1, 1].

    Attributes:
        value: the first share less the second.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


class Spread(NamedTuple):
    """A number measured with several seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation (divided by one less than the seeds); NaN for a single seed.
        worst: the smallest.
    """

    mean: float
    deviation: float
    worst: float


def wilson(share: float, n: int, *, level: float = 0.95) -> Interval:
    """The confidence interval of a share of n images, by Wilson's method.

    Wilson 1927 ("Probable inference, the law of succession, and statistical inference").

    ``share`` may be the mean over n images of any value in [0, 1], such as an image's share of five attacks
    withstood. The variance of such a value is at most p(1 − p), that of a coin with the same mean: the interval is
    then wider than necessary, and never too narrow, even if the outcomes of one image depend on each other.

    Args:
        share: in [0, 1].
        n: images, the independent units; at least 1.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: an argument is outside its range.

    Example:
        >>> low, high = wilson(0.5, 100)
        >>> f"{low:.3f} {high:.3f}"
        '0.404 0.596'
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share!r}; divide a percentage by 100")
    if n < 1:
        raise ValueError(f"an interval needs at least one image, got n={n}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}")
    z2 = statistics.NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    # With none or all correct one end is exactly 0 or 1; rounding would leave the share itself outside.
    return Interval(max(centre - half, 0.0) if share > 0 else 0.0, min(centre + half, 1.0) if share < 1 else 1.0)


def in_percent(share: float, n: int) -> str:
    """A share of n images in per cent, with its Wilson 95 % interval.

    Example:
        >>> in_percent(0.7, 100)
        '70.0 [60.4, 78.1]'
    """
    low, high = wilson(share, n)
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two ways of classifying the same images, by their disagreements.

    Exact: among the disagreements each way is a fair coin if neither is better (McNemar 1947), and the binomial
    tail is summed in integers.

    Args:
        first: whether each image was classified correctly one way.
        second: the same images, in the same order, the other way.

    Raises:
        ValueError: the two are not of one length.

    Example:
        >>> mcnemar([True] * 6 + [False], [False] * 6 + [False])
        Paired(only_first=6, only_second=0, p=0.03125)
    """
    _check_paired(first, second)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    disagreements = only_first + only_second
    tail = sum(math.comb(disagreements, k) for k in range(min(only_first, only_second) + 1))
    return Paired(only_first, only_second, min(1.0, 2 * tail / 2**disagreements))


def _check_paired(first: Sequence[bool], second: Sequence[bool]) -> None:
    if len(first) != len(second):
        raise ValueError(f"a paired test needs the same images twice, got {len(first)} and {len(second)} outcomes")


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """The difference of two accuracies on the same images, with its 95 % interval.

    Newcombe 1998 ("Improved confidence intervals for the difference between binomial proportions based on paired
    data"), method 10: Wilson's intervals of both shares, joined with the correlation of the two ways.

    Args:
        first: whether each image was classified correctly one way.
        second: the same images, in the same order, the other way.

    Raises:
        ValueError: the two are not of one length, or there are no images.

    Example:
        >>> pairs = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
        >>> " ".join(f"{number:.4f}" for number in paired_difference(*zip(*pairs)))
        '0.2000 0.0569 0.3404'
    """
    _check_paired(first, second)
    n = len(first)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    one, other = sum(first), sum(second)
    p, q = one / n if n else 0.0, other / n if n else 0.0
    (p_low, p_high), (q_low, q_high) = wilson(p, n), wilson(q, n)
    product: float = both * (n - one - other + both) - (one - both) * (other - both)
    # Corrected for continuity where it is positive.
    product = max(product - n / 2, 0) if product > 0 else product
    margins = one * (n - one) * other * (n - other)
    correlation = product / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(a**2 - 2 * correlation * a * b + b**2)

    low, high = reach(p - p_low, q_high - q), reach(p_high - p, q - q_low)
    return Difference(p - q, p - q - low, p - q + high)


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and worst of a number measured with several seeds.

    Raises:
        ValueError: there are no values.

    Example:
        >>> spread([0.5, 0.6, 0.7]).worst
        0.5
    """
    if not values:
        raise ValueError("a spread needs at least one value, got none")
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, min(values))


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        condition: as in the records, or "average" over several of them.
        defence: as in the records.
        budget: likewise.
        outcomes: by seed, then by image: 1 for correct and 0 for not, or the average of such.
        seconds: the median image's, since the first batch of a session also warms the machine up.
    """

    condition: str
    defence: str
    budget: int
    outcomes: dict[int, dict[str, float]]
    seconds: float

    @property
    def column(self) -> tuple[str, int]:
        """Identifies its column of the table."""
        return self.defence, self.budget

    @property
    def n(self) -> int:
        """Images: the independent units."""
        return len(next(iter(self.outcomes.values())))

    @property
    def by_seed(self) -> list[float]:
        """The accuracy with each seed."""
        return [fmean(images.values()) for images in self.outcomes.values()]

    @property
    def accuracy(self) -> float:
        """The mean over seeds and images."""
        return fmean(self.by_seed)

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %, of n images; see ``wilson`` for why an average may have one."""
        return wilson(self.accuracy, self.n)

    @property
    def percent(self) -> str:
        """The accuracy in per cent and that interval, such as "70.0 [60.4, 78.1]"."""
        return in_percent(self.accuracy, self.n)


def summarise(records: Iterable[Record], *, averaged: Sequence[str] = ()) -> list[Cell]:
    """The cells of a table, by condition, defence and budget.

    Args:
        records: of one run.
        averaged: conditions; a defence that has been through all of them also has a cell of their average.

    Raises:
        ValueError: there are no records, or not every image has been through everything.
    """
    groups: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.seed, record.position)):
        groups[record.condition, record.defence, record.budget].append(record)
    if not groups:
        raise ValueError("there are no records to report")
    cells = []
    for (condition, defence, budget), members in groups.items():
        outcomes: dict[int, dict[str, float]] = defaultdict(dict)
        for record in members:
            outcomes[record.seed][record.image] = float(record.correct)
        cells.append(Cell(condition, defence, budget, dict(outcomes), median(record.seconds for record in members)))
    sizes = {frozenset(images): len(images) for cell in cells for images in cell.outcomes.values()}
    if len(sizes) > 1:
        low, high = min(sizes.values()), max(sizes.values())
        raise ValueError(f"some outcomes are of {low} images and some of {high}; finish the run before reporting it")
    cells += _averages(cells, averaged)
    return sorted(cells, key=lambda cell: (condition_order(cell.condition), _place(cell.defence), cell.budget))


def _place(defence: str) -> tuple[int, str]:
    """The place of a defence in tables: those that are not in ``DEFENCES`` come last."""
    return DEFENCES.index(defence) if defence in DEFENCES else len(DEFENCES), defence


def _averages(cells: Sequence[Cell], averaged: Sequence[str]) -> Iterator[Cell]:
    columns: dict[tuple[str, int], dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        columns[cell.column][cell.condition] = cell
    for (defence, budget), rows in columns.items():
        if averaged and set(averaged) <= rows.keys():
            members = [rows[name] for name in averaged]
            outcomes = {
                seed: {image: fmean(member.outcomes[seed][image] for member in members) for image in images}
                for seed, images in members[0].outcomes.items()
            }
            yield Cell("average", defence, budget, outcomes, median(member.seconds for member in members))


def compare(first: Cell, second: Cell) -> Paired:
    """McNemar's test of two cells of the same images, with the first seed of each.

    Of two averages it is the sign test: on how many images each has the higher share of attacks withstood.
    """
    one, other = (next(iter(cell.outcomes.values())) for cell in (first, second))
    return mcnemar([one[image] > other[image] for image in one], [other[image] > one[image] for image in one])


def leaning(first: Cell, second: Cell) -> int:
    """Which cell is better: 1 for the first, -1 for the second, 0 for neither.

    The better one has both the higher accuracy and more of the images. The two may disagree: most images may have a
    little more of an average that is lower, and the first seed, which ``compare`` tests, may differ from the mean over
    all.
    """
    test, difference = compare(first, second), first.accuracy - second.accuracy
    split = test.only_first - test.only_second
    return (split > 0) - (split < 0) if split * difference > 0 else 0


def holm(p: Sequence[float]) -> list[float]:
    """The p of several tests of one claim, corrected for their number (Holm 1979).

    The correction bounds the chance of a false alarm in any of them.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = least
    return corrected


def sanity_checks(cells: Sequence[Cell]) -> list[tuple[str, bool]]:
    """Checks of the attacks on the undefended classifier, and whether each passes.

    More steps must not be weaker than one, a larger ε not weaker than a smaller one, and random noise of the same norm
    not as strong as an attack.
    """
    accuracy = {cell.condition: cell.accuracy for cell in cells if cell.defence == "none"}
    checks = []
    if "clean" in accuracy:
        checks.append(("every clean image is classified correctly, as it was chosen to be", accuracy["clean"] == 1))
    one_step = [accuracy[name] for name in accuracy if name.startswith("fgsm") and not name.endswith("8bit")]
    if len(one_step) > 1:
        checks.append(("FGSM is at least as strong with a larger ε", one_step == sorted(one_step, reverse=True)))
    for name in accuracy:
        kind, _, epsilon = name.partition("-")
        single = f"fgsm-{epsilon}"
        if kind == "bi" and single in accuracy and not name.endswith("8bit"):
            title = f"{attack_named(name)} is at least as strong as {attack_named(single)}"
            checks.append((title, accuracy[name] <= accuracy[single]))
    for name in accuracy:
        attack, control = attack_named(name), f"noise-{name.partition('-')[2]}"
        if attack is not None and name != control and control in accuracy:
            checks.append((f"{attack} is stronger than random noise of its norm", accuracy[name] < accuracy[control]))
    return checks
