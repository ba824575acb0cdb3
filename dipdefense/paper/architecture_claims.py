"""The claims of the paper's section 6, one by one, decided on what was measured.

The paper says "fail" and "little" and gives no numbers. Here a network *loses* if its accuracy is lower than the
original's by ``MARGIN`` or more, with p < 0.05: exact McNemar test on the same images, two-sided, corrected within a
claim by Holm's procedure. It *holds* if the 95 % interval of the difference excludes a loss of ``MARGIN``, and changes
*little* if the interval excludes a gain of that size, too. Every network is taken at the budget where its own
confidence under attack peaks, for a network that is only slower does not fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.statistics import holm
from dipdefense.paper.architecture_outcomes import Contrast, Outcomes, contrast, neighbours
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, SIGNIFICANT, UNDECIDED, Finding, wording
from dipdefense.paper.published import ARCHITECTURE_CLAIMS

MARGIN = 0.1
"""The change of accuracy that is "little" here: ten points."""

_FAILING = {"no skips": "no-skips", "shallow": "1-scale"}


def findings(found: Sequence[Outcomes]) -> list[Finding]:
    """The finding on each claim that the measured networks bear on.

    Args:
        found: from ``outcomes``.
    """
    original, *others = found
    by_name = {one.name: one for one in others}
    results = []
    for claim, name in _FAILING.items():
        if name in by_name:
            results.append(_decided(claim, original, [by_name[name]], _fails))
    if rest := [one for one in others if one.name not in _FAILING.values()]:
        results.append(_decided("sensitivity", original, rest, _changes_little))
    if beside := neighbours(original, others):
        results.append(
            _decided("resonance", original, [one for pair in beside.values() for one in pair], _no_resonance)
        )
    return results


Judged = tuple[Contrast, float]
"""A contrast and its corrected p."""


def lost(judged: Judged) -> bool:
    """Whether the variant is significantly below the original, by ``MARGIN`` or more."""
    shown, p = judged
    # Rounded, for 0.8 - 0.9 is not quite -0.1.
    return p < SIGNIFICANT and round(shown.difference.value, 9) <= -MARGIN


def held(judged: Judged) -> bool:
    """Whether the interval excludes a loss of ``MARGIN``."""
    return judged[0].difference.low > -MARGIN


def little(judged: Judged) -> bool:
    """Whether the interval excludes a loss and a gain of ``MARGIN``."""
    return held(judged) and judged[0].difference.high < MARGIN


def _decided(
    claim: str, original: Outcomes, variants: Sequence[Outcomes], decide: Callable[[dict[str, list[Judged]]], str]
) -> Finding:
    """Test a claim's contrasts together."""
    shown = [contrast(variant, original, name) for variant in variants for name in original.conditions]
    judged = list(zip(shown, holm([one.split.p for one in shown]), strict=True))
    by_variant = {one.name: [pair for pair in judged if pair[0].variant is one] for one in variants}
    details = list(_details(original, judged))
    return Finding(wording(ARCHITECTURE_CLAIMS[claim]), decide(by_variant), details)


def _fails(by_variant: dict[str, list[Judged]]) -> str:
    """The verdict on a claim that a network fails.

    Confirmed if it loses everywhere; contradicted if it loses nowhere and holds somewhere.
    """
    (judged,) = by_variant.values()
    if all(map(lost, judged)):
        return CONFIRMED
    return CONTRADICTED if any(map(held, judged)) and not any(map(lost, judged)) else UNDECIDED


def _changes_little(by_variant: dict[str, list[Judged]]) -> str:
    """The verdict on the claim that most variants change little.

    Confirmed if more than half of the variants change little everywhere; contradicted if more than half lose somewhere.
    """
    steady = sum(all(map(little, judged)) for judged in by_variant.values())
    moved = sum(any(map(lost, judged)) for judged in by_variant.values())
    if 2 * steady > len(by_variant):
        return CONFIRMED
    return CONTRADICTED if 2 * moved > len(by_variant) else UNDECIDED


def _no_resonance(by_variant: dict[str, list[Judged]]) -> str:
    """The verdict on the claim that the original network is no “resonance”.

    Contradicted if along one of the network's numbers both neighbours lose somewhere; confirmed if along each of them
    one of the two holds everywhere.
    """
    neighbouring = list(by_variant.values())
    pairs = list(zip(neighbouring[::2], neighbouring[1::2], strict=True))
    if any(all(any(map(lost, judged)) for judged in pair) for pair in pairs):
        return CONTRADICTED
    return CONFIRMED if all(any(all(map(held, judged)) for judged in pair) for pair in pairs) else UNDECIDED


def _details(original: Outcomes, judged: Sequence[Judged]) -> Iterator[str]:
    for shown, p in judged:
        value, low, high = (100 * number for number in shown.difference)
        own, other = (one.at_peak(shown.condition) for one in (shown.variant, original))
        words = (("loses", lost), ("changes little", little), ("holds", held))
        verdict = next((word for word, holds in words if holds((shown, p))), "open")
        yield (
            f"{shown.variant.title}, {condition_title(shown.condition)}: {own.percent} at {own.budget} against "
            f"{other.percent} at {other.budget}, {value:+.1f} [{low:+.1f}, {high:+.1f}] points, "
            f"{shown.split.only_first} : {shown.split.only_second}, p = {p:.2g}: {verdict}"
        )
