"""Verdicts on random defences, from fresh draws that the attack never saw.

"Failed once during the attack" inflates an attack's success on a random defence: with enough attempts every image fails
once. So an attack hands over one image, and that image is classified anew with several seeds of the defence:

- mean: the share of these draws that classify it correctly, which is the accuracy of a defence that is asked once;
- worst: whether all of them do, for an attacker who may try as often;
- majority: whether the class that most of them name is the right one; a tie counts against the defence.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from dipdefense.evaluation.adaptive.names import WORST_CASE, Column, named, target_name
from dipdefense.evaluation.records import Record
from dipdefense.evaluation.statistics import Interval, Paired, mcnemar, wilson

# Confidences that rounded to 0 would have an infinite loss.
_LEAST = 1e-12


class Draw(NamedTuple):
    """One classification of one image.

    Attributes:
        correct: whether it named the label.
        prediction: the class that it named.
        confidence: the label's, in [0, 1]; None where the output was not finite.
    """

    correct: bool
    prediction: int
    confidence: float | None


@dataclass(frozen=True)
class Verdict:
    """All draws of one attack on one defence, or of the worst case over several.

    Attributes:
        condition: as in the records, or ``WORST_CASE``.
        column: defence and budget.
        images: their ids, in order.
        draws: of each image, in the order of the seeds.
        single: the share of each image's draws that are correct.
        every: of each image, whether all of its draws are correct.
        most: of each image, whether the class that most draws name is the label; a tie counts against the defence.
    """

    condition: str
    column: Column
    images: tuple[str, ...]
    draws: tuple[tuple[Draw, ...], ...]
    single: tuple[float, ...]
    every: tuple[bool, ...]
    most: tuple[bool, ...]

    @property
    def n(self) -> int:
        """Images: the independent units."""
        return len(self.images)

    @property
    def mean(self) -> float:
        """Accuracy of a single draw."""
        return fmean(self.single)

    @property
    def worst(self) -> float:
        """Accuracy where one wrong draw is enough."""
        return fmean(self.every)

    @property
    def majority(self) -> float:
        """Accuracy of the vote."""
        return fmean(self.most)

    def interval(self, share: float) -> Interval:
        """Wilson's, 95 %, of n images; see ``wilson`` for why a mean may have one."""
        return wilson(share, self.n)

    @property
    def error(self) -> float:
        """The standard error of the mean that comes from the draws alone.

        It is 0 where no image's draws differ. From one draw an image nothing is known of their variance: the error is
        0, as for a defence that is not random.
        """
        variances = (p * (1 - p) / max(len(draws) - 1, 1) for p, draws in zip(self.single, self.draws, strict=True))
        return math.sqrt(sum(variances)) / self.n

    @property
    def loss(self) -> float:
        """Mean cross-entropy over images and draws.

        An output that is not finite counts as one of confidence 0.
        """
        return fmean(-math.log(max(draw.confidence or 0.0, _LEAST)) for draws in self.draws for draw in draws)


def _majority(draws: Sequence[Draw]) -> bool:
    votes = Counter(draw.prediction for draw in draws).most_common(2)
    tied = len(votes) > 1 and votes[0][1] == votes[1][1]
    right = {draw.prediction for draw in draws if draw.correct}
    return not tied and votes[0][0] in right


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """One for every condition and column, in the order that they first come in.

    Args:
        records: of one run.
    """
    found: dict[tuple[str, Column], dict[tuple[int, str], dict[int, Draw]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        draw = Draw(record.correct, record.prediction, record.confidence)
        place = record.position, record.image
        found[record.condition, (record.defence, record.budget)][place][record.seed] = draw
    return [_verdict(condition, column, images) for (condition, column), images in found.items()]


def _verdict(condition: str, column: Column, images: dict[tuple[int, str], dict[int, Draw]]) -> Verdict:
    ids = tuple(name for _, name in sorted(images))
    draws = tuple(tuple(by_seed[seed] for seed in sorted(by_seed)) for _, by_seed in sorted(images.items()))
    return Verdict(
        condition,
        column,
        ids,
        draws,
        single=tuple(fmean(draw.correct for draw in own) for own in draws),
        every=tuple(all(draw.correct for draw in own) for own in draws),
        most=tuple(_majority(own) for own in draws),
    )


def worst_case(over: Sequence[Verdict]) -> Verdict:
    """Each image under the attack that is strongest on it.

    The strongest of several means of few draws is biased towards the attacker: with equal attacks, it is the least
    lucky sample. So an image's attack is chosen by one half of its draws and judged by the other, both ways round. Or
    one attack is taken for all images, where that leaves less: a choice among means of all images and draws, which errs
    little, and towards the attacker.
    ``every`` and ``most`` need no such care: an image counts where it withstands every attack.

    Args:
        over: of one column, the same images and the same seeds.

    Raises:
        ValueError: there are none, or they differ in column or images.
    """
    if not over:
        raise ValueError("a worst case needs at least one attack, got none")
    first = over[0]
    if any((other.column, other.images) != (first.column, first.images) for other in over):
        raise ValueError("a worst case is of one defence and the same images under every attack; finish the run first")
    single, draws = [], []
    for rows in zip(*(verdict.draws for verdict in over), strict=True):
        single.append(_crossed(rows))
        # All draws of the attack under which the vote fails, else of that with the fewest correct ones.
        draws.append(min(rows, key=lambda row: (_majority(row), sum(draw.correct for draw in row))))
    # An attacker may also take one attack for all images, which is the better plan where they hardly differ.
    alone = min(over, key=lambda verdict: verdict.mean)
    if alone.mean < fmean(single):
        single = list(alone.single)
    every = tuple(all(verdict.every[image] for verdict in over) for image in range(first.n))
    most = tuple(all(verdict.most[image] for verdict in over) for image in range(first.n))
    return Verdict(WORST_CASE, first.column, first.images, tuple(draws), tuple(single), every, most)


def _crossed(rows: Sequence[Sequence[Draw]]) -> float:
    """The mean of two halves of draws, each under the attack strongest on the other."""
    if len(rows[0]) < 2:
        return min(fmean(draw.correct for draw in row) for row in rows)
    halves = [[fmean(draw.correct for draw in row[start::2]) for start in (0, 1)] for row in rows]
    return fmean(min(halves, key=lambda half: half[1 - own])[own] for own in (0, 1))


def attackers(found: Iterable[Verdict], column: Column, epsilon: float) -> list[Verdict]:
    """One column's verdicts on the attacks at one ε, without the controls.

    Attacks that were crafted on another defence are left out too.
    """
    own = target_name(*column)
    return [
        verdict
        for verdict in found
        if verdict.column == column
        and (parts := named(verdict.condition)) is not None
        and not parts.control
        and parts.epsilon == epsilon
        and parts.target in (None, own)
    ]


def paired(first: Verdict, second: Verdict) -> Paired:
    """McNemar's test of the majority votes of two verdicts on the same images.

    It is meant for two defences, each under its own strongest attack.

    Raises:
        ValueError: the images differ.
    """
    if first.images != second.images:
        raise ValueError("a paired test needs the same images twice")
    return mcnemar(first.most, second.most)
