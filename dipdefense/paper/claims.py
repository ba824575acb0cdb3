"""The paper's claims about its Tables 1 and 2, decided on what was measured.

Most claims are that one number is above another. Such a claim is tested on the same images, exactly and two-sided,
where the p of one claim's comparisons are corrected by Holm's procedure. It is confirmed if everything it speaks of was
measured and goes its way significantly, contradicted if one comparison goes the other way significantly, and otherwise
not decidable yet. The other claims are numbers, which lie in the measured interval or on one side of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dipdefense.config import PAPER_BUDGETS
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.statistics import Cell, compare, holm, leaning
from dipdefense.paper.labels import Column, column_title
from dipdefense.paper.published import CLAIMS, PUBLISHED, QUOTED, Claim, Published, printed_number
from dipdefense.paper.tables import ADVERSARIES, PASSES

CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "not decidable yet"
LARGER, SAME, SMALLER = "larger than published", "as published, within the interval", "smaller than published"

SIGNIFICANT = 0.05
"""The level of every verdict, after correction."""

Found = Mapping[tuple[str, Column], Cell]


class Comparison(NamedTuple):
    """Two numbers of the same images, the first of which a claim says is the higher.

    Attributes:
        condition: of both.
        higher: the number claimed to be the higher.
        lower: the other.
    """

    condition: str
    higher: Cell
    lower: Cell


@dataclass(frozen=True)
class Finding:
    """A claim and what was found of it.

    Attributes:
        claim: in plain words, with its place in the paper and the paper's own words.
        verdict: confirmed, contradicted or not decidable yet; of a number, how it compares with the published one.
        details: one a comparison: the numbers, the split and p, and the published numbers.
    """

    claim: str
    verdict: str
    details: Sequence[str]


def findings(cells: Sequence[Cell], published: Sequence[Published] = PUBLISHED) -> list[Finding]:
    """The finding on each claim that the measured cells bear on.

    There is none without a reconstruction. The budgets that are compared are the first and last of the paper's, 500 and
    1,000, where both were recorded, else the smallest and the largest.

    Args:
        cells: from ``table_cells``.
        published: the numbers to set beside them.
    """
    found = {(cell.condition, cell.column): cell for cell in cells}
    results = []
    for name, conditions, pairs in comparisons(cells):
        measured = {pair.condition for pair in pairs}
        missing = [condition for condition in conditions if condition not in measured]
        results.append(decide(wording(CLAIMS[name]), pairs, missing=missing, published=published))
    return [*results, *(_numbers(found, published) if results else ())]


def comparisons(cells: Sequence[Cell]) -> Iterator[tuple[str, Sequence[str], list[Comparison]]]:
    """The name, conditions and measured pairs of each claim that compares numbers."""
    budgets = sorted({cell.budget for cell in cells if cell.defence == "dip"})
    if not budgets:
        return
    paperlike = set(PAPER_BUDGETS) & set(budgets)
    if not {PAPER_BUDGETS[0], PAPER_BUDGETS[-1]} <= paperlike:
        paperlike = {budgets[0], budgets[-1]}
    *shorter, many = (("dip", budget) for budget in sorted(paperlike))
    few = shorter[:1]
    none, once, averaged = ("none", 0), ("randomisation", PASSES[0]), ("randomisation", PASSES[-1])
    quoted = [p.condition for p in PUBLISHED if p.source == QUOTED and p.condition != "average"]
    unquoted = [name for name in ADVERSARIES if name not in quoted]
    rising = [name for name in ADVERSARIES if name != "fgsm-10"]
    claims: list[tuple[str, Sequence[str], Column, Sequence[Column]]] = [
        ("cost", ["clean"], none, [many]),
        ("gain", ADVERSARIES, many, [none]),
        ("randomisation", quoted, many, [once]),
        ("randomisation, other attacks", unquoted, many, [once]),
        ("randomisation, 30 passes", ADVERSARIES, many, [averaged]),
        ("iterations, clean", ["clean"], many, few),
        ("iterations, attacked", rising, many, few),
        ("iterations, fgsm-10", ["fgsm-10"], ("dip", PAPER_BUDGETS[1]), [("dip", PAPER_BUDGETS[2])]),
        ("average", ["average"], many, [once]),
        ("iterations, average", ["average"], many, shorter),
    ]
    found = {(cell.condition, cell.column): cell for cell in cells}
    for name, conditions, higher, lowers in claims:
        pairs = [
            Comparison(condition, found[condition, higher], found[condition, lower])
            for condition in conditions
            for lower in lowers
            if {(condition, higher), (condition, lower)} <= found.keys()
        ]
        if pairs:
            yield name, conditions, pairs


def decide(
    claim: str,
    pairs: Sequence[Comparison],
    *,
    missing: Sequence[str] = (),
    published: Sequence[Published] = PUBLISHED,
) -> Finding:
    """Test a claim's comparisons together.

    Args:
        claim: in words.
        pairs: at least one.
        missing: conditions that the claim speaks of and that were not measured.
        published: the numbers to set beside them.
    """
    splits = [compare(pair.higher, pair.lower) for pair in pairs]
    corrected = holm([split.p for split in splits])
    verdicts = []
    details = []
    for pair, split, p in zip(pairs, splits, corrected, strict=True):
        verdicts.append(_verdict(pair, p))
        mine, other = (f"{column_title(*cell.column)} {cell.percent}" for cell in (pair.higher, pair.lower))
        details.append(
            f"{condition_title(pair.condition)}: {mine} against {other}, {split.only_first} : {split.only_second}, "
            f"p = {p:.2g}{_published(pair, published)}: {verdicts[-1]}"
        )
    if missing:
        details.append(f"not measured: {', '.join(map(condition_title, missing))}")
    return Finding(claim, settled(verdicts, missing), details)


def settled(verdicts: Sequence[str], missing: Sequence[str] = ()) -> str:
    """The verdict on a claim about every condition, from the verdict under each.

    Args:
        verdicts: at least one, each confirmed, contradicted or undecided.
        missing: conditions that the claim speaks of and that were not measured.
    """
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return UNDECIDED if missing or UNDECIDED in verdicts else CONFIRMED


def wording(claim: Claim) -> str:
    """A claim in plain words, with its place in the paper and the paper's own words."""
    statement, place, quote = claim
    return f"{statement} ({place}{f': “{quote}”' if quote else ''})"


def _verdict(pair: Comparison, p: float) -> str:
    way = leaning(pair.higher, pair.lower)
    if p >= SIGNIFICANT or not way:
        return UNDECIDED
    return CONFIRMED if way > 0 else CONTRADICTED


def _published(pair: Comparison, published: Sequence[Published]) -> str:
    """The published numbers of both, if there are both."""
    numbers = [printed_number(pair.condition, *cell.column, published) for cell in (pair.higher, pair.lower)]
    known = [number for number in numbers if number]
    return f" (published {known[0].percent:.1f} against {known[1].percent:.1f})" if len(known) == len(numbers) else ""


def _numbers(found: Found, published: Sequence[Published]) -> Iterator[Finding]:
    """The fall on clean images and the average, beside the published ones.

    The verdict is that of the last budget. The fall is from 100 %, for the images were chosen to be classified
    correctly.
    """
    for name, condition in (("published cost", "clean"), ("published average", "average")):
        verdicts, details = [], []
        for theirs in published:
            column = theirs.defence, theirs.budget
            if theirs.defence != "dip" or theirs.condition != condition or (condition, column) not in found:
                continue
            cell = found[condition, column]
            value, low, high = (100 * share for share in (cell.accuracy, *cell.interval))
            number = theirs.percent
            if condition == "clean":
                value, low, high, number = 100 - value, 100 - high, 100 - low, 100 - number
            verdicts.append(LARGER if low > number else SMALLER if high < number else SAME)
            measured = f"{column_title(*column)} {value:.1f} [{low:.1f}, {high:.1f}]"
            details.append(f"{condition_title(condition)}: {measured}, published {number:.1f}: {verdicts[-1]}")
        if verdicts:
            yield Finding(wording(CLAIMS[name]), verdicts[-1], details)
