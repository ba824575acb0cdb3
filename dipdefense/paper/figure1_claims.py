"""The paper's sentences on its Figure 1, decided on what was measured.

Each is tested attack by attack over the images, two-sided, and the p of one claim are corrected by Holm's procedure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dipdefense.evaluation.curves import Curve, exchanged_p, largest_mean_p
from dipdefense.evaluation.protocol import attack_named, condition_title
from dipdefense.evaluation.statistics import holm, mcnemar
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, SIGNIFICANT, UNDECIDED, Finding, settled, wording
from dipdefense.paper.figure1_setting import CONDITIONS, EPSILONS, NAMES
from dipdefense.paper.published import FIGURE_1_CLAIMS

HOW = (
    "Images are the units. Recovery and fall: the largest of the mean differences over the iterations, by flipping the "
    "signs of an image's differences, which accounts for choosing the largest; recovery is contradicted where the "
    "confidence is significantly below at all iterations, and a fall where it is highest at the last one and "
    "significantly above that at half of them. Early: how many images' own curves are highest in the first half of the "
    "iterations : how many later, exact sign test. Where the peaks are: images' own peaks exchanged among conditions. "
    "All two-sided, corrected within a claim by Holm's procedure. Confirmed: under every attack that the claim speaks "
    "of, with p < 0.05; that peaks differ: in one comparison at least. A gain, a fall or a whole curve of less than "
    "0.05 decides nothing, however certain it is."
)

# A mean confidence that rises from 0 to 0.01 in every image recovers nothing.
_LEAST = 0.05


class _Test(NamedTuple):
    """One attack's, or one comparison's, part in a claim.

    Attributes:
        told: in words.
        p: before correction.
        verdict: if that is significant.
        size: the difference in confidence that the verdict is about.
    """

    told: str
    p: float
    verdict: str
    size: float = 1.0


def findings(curves: Sequence[Curve]) -> list[Finding]:
    """The finding on each sentence that the curves bear on; none without an attack.

    Args:
        curves: from ``confidence_curves``.
    """
    attacked = [curve for curve in curves if attack_named(curve.condition) is not None]
    missing = [name for name in CONDITIONS if name != "clean" and name not in {c.condition for c in attacked}]
    results = []
    for name, test in (("recovery", _recovery), ("return", _return), ("early", _early)):
        tests = [found for curve in attacked if (found := test(curve)) is not None]
        if tests:
            verdicts, details = _decided(tests)
            if missing:
                details.append(f"not measured: {', '.join(map(condition_title, missing))}")
            results.append(Finding(wording(FIGURE_1_CLAIMS[name]), settled(verdicts, missing), details))
    by_name = {curve.condition: curve for curve in attacked}
    for name, groups in (
        ("adversaries", [[f"{name.lower()}-{epsilon}" for name in NAMES] for epsilon in EPSILONS]),
        ("strengths", [[f"{name.lower()}-{epsilon}" for epsilon in EPSILONS] for name in NAMES]),
    ):
        measured = [[by_name[condition] for condition in group if condition in by_name] for group in groups]
        tests = [_places(group) for group in measured if len(group) > 1]
        if tests:
            verdicts, details = _decided(tests)
            verdict = CONFIRMED if CONFIRMED in verdicts else UNDECIDED
            results.append(Finding(wording(FIGURE_1_CLAIMS[name]), verdict, details))
    return results


def _decided(tests: Sequence[_Test]) -> tuple[list[str], list[str]]:
    """The verdict of each test after Holm's correction, and each in words."""
    verdicts, details = [], []
    for test, p in zip(tests, holm([test.p for test in tests]), strict=True):
        verdicts.append(test.verdict if p < SIGNIFICANT and test.size >= _LEAST else UNDECIDED)
        details.append(f"{test.told}, p = {p:.2g}: {verdicts[-1]}")
    return verdicts, details


def _recovery(curve: Curve) -> _Test | None:
    """The best iteration's confidence against that of the adversarial image.

    None where the latter is not known.
    """
    if curve.undefended is None:
        return None
    gains = curve.confidences - curve.undefended[:, None]
    told = f"{_peak(curve)}, the adversarial image {curve.undefended.mean():.2f}"
    best = gains.mean(dim=0).max().item()
    if best > 0:
        return _Test(told, _doubled(largest_mean_p(gains)), CONFIRMED, best)
    # Below at every iteration, so the least certain of them counts.
    return _Test(told, _doubled(max(largest_mean_p(-gain[:, None]) for gain in gains.T)), CONTRADICTED, -best)


def _return(curve: Curve) -> _Test | None:
    """The best iteration's confidence against the last one's.

    None where there is a single iteration.
    """
    *before, last = curve.budgets
    if not before:
        return None
    falls = curve.confidences[:, :-1] - curve.confidences[:, -1:]
    told = f"{_peak(curve)}, {curve.at(last)} at {last}"
    largest = falls.mean(dim=0).max().item()
    if largest > 0:
        return _Test(told, _doubled(largest_mean_p(falls)), CONFIRMED, largest)
    half = _half(curve)
    rises = -falls[:, [half]]
    told += f", {curve.at(curve.budgets[half])} at {curve.budgets[half]}"
    return _Test(told, _doubled(largest_mean_p(rises)), CONTRADICTED, rises.mean().item())


def _early(curve: Curve) -> _Test | None:
    """How many images peak in the first half of the iterations, and how many later.

    None where there is a single iteration.
    """
    if len(curve.budgets) < 2:
        return None
    half = curve.budgets[_half(curve)]
    early = [peak <= half for peak in curve.peaks]
    split = mcnemar(early, [not each for each in early])
    low, high = f"{curve.peak.low:g}", f"{curve.peak.high:g}"
    told = (
        f"{condition_title(curve.condition)}: the mean peaks at {curve.peak.value:g} [{low}, {high}], images until "
        f"{half} and later {split.only_first} : {split.only_second}"
    )
    verdict = CONFIRMED if split.only_first > split.only_second else CONTRADICTED
    return _Test(told, split.p, verdict, max(curve.mean) - min(curve.mean))


def _places(curves: Sequence[Curve]) -> _Test:
    """The iterations of the images' own peaks, compared among conditions."""
    p = exchanged_p(list(zip(*(curve.peaks for curve in curves), strict=True)))
    means = (f"{condition_title(curve.condition)} {sum(curve.peaks) / curve.n:.0f}" for curve in curves)
    return _Test(f"images peak on average at: {', '.join(means)}", p, CONFIRMED)


def _half(curve: Curve) -> int:
    """The place of the last budget in the first half of the iterations.

    If there is none, that of the first budget.
    """
    return max((place for place, budget in enumerate(curve.budgets) if 2 * budget <= curve.budgets[-1]), default=0)


def _peak(curve: Curve) -> str:
    at = int(curve.peak.value)
    return f"{condition_title(curve.condition)}: peak {curve.at(at)} at {at}"


def _doubled(one_sided: float) -> float:
    return min(1.0, 2 * one_sided)
