"""The paper's claims about its Tables 1 and 2, one by one, decided on what was measured.

A claim is that one number is above another. It is tested on the same images, exactly and two-sided, where the p of
one claim's comparisons are corrected by Holm's procedure. A claim is confirmed if every comparison goes its way
significantly, contradicted if one goes the other way significantly, and otherwise not decidable yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dipdefense.config import PAPER_BUDGETS
from dipdefense.evaluation import paper
from dipdefense.evaluation.labels import Column, column_title, percent
from dipdefense.evaluation.protocol import ADVERSARIES, condition_title
from dipdefense.evaluation.statistics import Cell, compare, holm

CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "not decidable yet"

_SIGNIFICANT = 0.05


class Comparison(NamedTuple):
    """One pair of numbers of the same images, of which a claim says that the first is the higher.

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
        claim: as the paper has it, in other words, with the place.
        verdict: confirmed, contradicted, or not decidable yet.
        details: one a comparison: the numbers, the split and p, and the published numbers.
    """

    claim: str
    verdict: str
    details: Sequence[str]


def findings(cells: Sequence[Cell]) -> list[Finding]:
    """What was found of each claim that the measured cells have something to say on; none without a reconstruction.

    The budgets that are compared are the paper's, 500 and 1,000, where both were recorded, else the smallest and the
    largest.

    Args:
        cells: from ``summarise``, of one run.
    """
    budgets = sorted({cell.budget for cell in cells if cell.defence == "dip"})
    if not budgets:
        return []
    first, last = (budgets[0], budgets[-1]) if {500, 1000} - set(budgets) else (500, 1000)
    found = {(cell.condition, cell.column): cell for cell in cells}
    none, once, few, many = ("none", 0), ("randomisation", 1), ("dip", first), ("dip", last)
    rising = [name for name in ADVERSARIES if name != "fgsm-10"]
    quoted = [p.condition for p in paper.PUBLISHED if p.source == paper.QUOTED and p.condition != "average"]
    best, longest = ("dip", PAPER_BUDGETS[1]), ("dip", PAPER_BUDGETS[2])
    claims: list[tuple[str, Sequence[str], Column, Column]] = [
        ("The defence lowers the accuracy on clean images (section 4, Table 1).", ["clean"], none, many),
        ("It raises the accuracy under every attack (section 4, Table 2).", ADVERSARIES, many, none),
        ("It is above randomisation at each adversary compared (section 4, Table 2).", quoted, many, once),
        (
            "It is above randomisation at the other adversaries, too (not claimed: the paper quotes no numbers).",
            [name for name in ADVERSARIES if name not in quoted],
            many,
            once,
        ),
        ("More iterations raise the accuracy on clean images (section 4, Table 1).", ["clean"], many, few),
        ("More iterations raise the accuracy under attack, but for FGSM ε=10 (Table 2).", rising, many, few),
        ("Under FGSM ε=10, 1,000 iterations are worse than 750 (section 4, Table 2).", ["fgsm-10"], best, longest),
        ("On average over the attacks it is above randomisation (Table 2).", ["average"], many, once),
        ("On average over the attacks, more iterations are better (section 4, Table 2).", ["average"], many, few),
    ]
    results = []
    for claim, conditions, higher, lower in claims:
        pairs = [
            Comparison(name, found[name, higher], found[name, lower])
            for name in conditions
            if higher != lower and {(name, higher), (name, lower)} <= found.keys()
        ]
        if pairs:
            missing = [condition_title(name) for name in conditions if name not in {pair.condition for pair in pairs}]
            results.append(decide(f"{claim} Not measured: {', '.join(missing)}." if missing else claim, pairs))
    return results


def decide(claim: str, pairs: Sequence[Comparison]) -> Finding:
    """Test a claim's comparisons together.

    Args:
        claim: in words.
        pairs: at least one.
    """
    splits = [compare(pair.higher, pair.lower) for pair in pairs]
    corrected = holm([split.p for split in splits])
    verdicts = []
    details = []
    for pair, split, p in zip(pairs, splits, corrected, strict=True):
        verdicts.append(_verdict(split.only_first - split.only_second, p))
        mine, other = (f"{column_title(*cell.column)} {percent(cell)}" for cell in (pair.higher, pair.lower))
        details.append(
            f"{condition_title(pair.condition)}: {mine} against {other}, {split.only_first} : {split.only_second}, "
            f"p = {p:.2g}{_published(pair)}: {verdicts[-1]}"
        )
    if CONTRADICTED in verdicts:
        return Finding(claim, CONTRADICTED, details)
    return Finding(claim, UNDECIDED if UNDECIDED in verdicts else CONFIRMED, details)


def _verdict(surplus: int, p: float) -> str:
    if p >= _SIGNIFICANT:
        return UNDECIDED
    return CONFIRMED if surplus > 0 else CONTRADICTED


def _published(pair: Comparison) -> str:
    """What the paper has for both, if it has both."""
    numbers = [paper.published(pair.condition, *cell.column) for cell in (pair.higher, pair.lower)]
    known = [number for number in numbers if number]
    return f" (published {known[0].percent:.1f} against {known[1].percent:.1f})" if len(known) == len(numbers) else ""
