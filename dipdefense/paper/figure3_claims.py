"""Figure 3's curves with bootstrap intervals, and the paper's claims about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dipdefense.evaluation import Run
from dipdefense.evaluation.bootstrap import Estimate, interval, resampled_means
from dipdefense.evaluation.records import Record
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, UNDECIDED, Finding, wording
from dipdefense.paper.published import FIGURE_3_CLAIMS

NEGLIGIBLE = 0.02
"""A peak or trough of less than this is none."""

EARLY = 200
"""Iterations that count as early ones."""

FEWEST = 20
"""Images below which nothing is decided: the bootstrap's intervals are then too narrow."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class SetCurve:
    """One set of images against the iterations, behind one architecture.

    Attributes:
        images: their ids.
        budgets: iterations, ascending.
        confidence: (images, budgets), of the label, the mean over the seeds; 0 where the output was not finite.
        correct: likewise, whether the prediction is the label.
        loss: likewise, the mean squared error; NaN where the network diverged.
        before: (images,) the label's confidence of the set's images themselves.
    """

    images: tuple[str, ...]
    budgets: tuple[int, ...]
    confidence: Numbers
    correct: Numbers
    loss: Numbers
    before: Numbers

    @property
    def diverged(self) -> int:
        """Images that a network diverged on, with any seed."""
        return int(np.isnan(self.loss).any(axis=1).sum())


class Extremum(NamedTuple):
    """The peak or trough of a mean curve.

    Attributes:
        budget: where the mean over all images has it.
        rise: how far it lies from the curve before, towards the peak or trough.
        fall: how far it lies from the end of the curve.
        largest: the 97.5th percentile, over resampled mean curves, of the smaller of rise and fall.
    """

    budget: int
    rise: Estimate
    fall: Estimate
    largest: float


class Crossing(NamedTuple):
    """From which iteration on one mean curve stays above another.

    Attributes:
        budget: None where the curves do not cross.
        low: 2.5th percentile of the resampled curves that cross.
        high: 97.5th percentile.
        share: of the resampled curves that cross, in [0, 1].
    """

    budget: float | None
    low: float
    high: float
    share: float


def curve(run: Run) -> SetCurve:
    """The curve of a run that has one condition.

    Raises:
        ValueError: an outcome is missing.
    """
    fitted = [record for record in run.records if record.defence == "dip"]
    images = tuple(dict.fromkeys(record.image for record in run.records))
    budgets = tuple(sorted({record.budget for record in fitted}))
    shape = len({record.seed for record in fitted}), len(images), len(budgets)
    if len(fitted) != np.prod(shape):
        raise ValueError(f"the run has {len(fitted)} outcomes of {np.prod(shape)}; finish it before reporting it")
    ordered = sorted(fitted, key=lambda record: (record.seed, images.index(record.image), record.budget))
    before = {record.image: record.confidence or 0.0 for record in run.records if record.defence == "none"}

    def mean(values: list[float]) -> Numbers:
        array: Numbers = np.array(values, dtype=np.float64).reshape(shape).mean(axis=0)
        return array

    return SetCurve(
        images,
        budgets,
        mean([record.confidence or 0.0 for record in ordered]),
        mean([float(record.correct) for record in ordered]),
        mean([_loss(record) for record in ordered]),
        np.array([before[name] for name in images]),
    )


def mean_interval(values: Numbers) -> Estimate:
    """The mean of one number an image."""
    low, high = _ends(_resampled(values))
    return Estimate(float(values.mean()), low, high)


def band(values: Numbers) -> tuple[Numbers, Numbers]:
    """The 95 % bootstrap interval of each column's mean."""
    low, high = interval(torch.from_numpy(_resampled(values))).numpy()
    return low, high


def difference(first: Numbers, second: Numbers, *, paired: bool) -> Estimate:
    """The difference of the means of one number an image.

    If ``paired``, both are of the same images in the same order.
    """
    if paired:
        return mean_interval(first - second)
    return Estimate(float(first.mean() - second.mean()), *_ends(_resampled(first) - _resampled(second, seed=1)))


def extremum(values: Numbers, budgets: tuple[int, ...], *, sign: int) -> Extremum:
    """The peak (``sign`` 1) or trough (−1) of the mean curve before its end.

    The highest point of a noisy curve is too high. So each image's contribution is taken at the place that the mean
    over the other half of the images chooses, and the intervals are those of these contributions.

    Args:
        values: (images, budgets).
        budgets: iterations.
        sign: 1 or −1.
    """
    signed = sign * values
    count = len(signed)
    rises, falls = np.zeros(count), np.zeros(count)
    for half in (0, 1):
        before, top = _top(signed[1 - half :: 2].mean(axis=0) if count > 1 else signed[0])
        rises[half::2] = signed[half::2, top] - signed[half::2, before]
        falls[half::2] = signed[half::2, top] - signed[half::2, -1]
    heights = []
    for resampled in _resampled(signed):
        before, top = _top(resampled)
        heights.append((resampled[top] - resampled[[before, -1]]).min())
    _, top = _top(signed.mean(axis=0))
    return Extremum(budgets[top], mean_interval(rises), mean_interval(falls), float(np.percentile(heights, 97.5)))


def crossing(first: SetCurve, second: SetCurve) -> Crossing:
    """Where the curve that ends higher crosses the other for the last time.

    It is interpolated between the recorded iterations.
    """
    paired = first.images == second.images
    resampled = _resampled(first.confidence) - _resampled(second.confidence, seed=0 if paired else 1)
    found = [_crossing(apart, first.budgets) for apart in resampled]
    known = [budget for budget in found if budget is not None]
    own = _crossing(first.confidence.mean(axis=0) - second.confidence.mean(axis=0), first.budgets)
    low, high = _ends(np.array(known)) if known else (np.nan, np.nan)
    return Crossing(own, low, high, len(known) / len(found))


def lead(first: SetCurve, second: SetCurve) -> tuple[Estimate, Estimate]:
    """By how much the first is ahead early, and by how much more than at the end.

    Early: the mean over the recorded iterations up to ``EARLY``.
    """
    paired = first.images == second.images
    early = [each.confidence[:, np.array(each.budgets) <= EARLY].mean(axis=1) for each in (first, second)]
    gains = [mean - each.confidence[:, -1] for mean, each in zip(early, (first, second), strict=True)]
    return difference(early[0], early[1], paired=paired), difference(gains[0], gains[1], paired=paired)


def findings(curves: Mapping[str, SetCurve]) -> list[Finding]:
    """The finding on each claim that the sets of one architecture bear on."""
    found = []
    robust = curves.get("robust")
    others = {name: curves[name] for name in ("non-robust", "random-target") if name in curves}
    for name, other in others.items():
        if robust is None:
            break
        paired = robust.images == other.images
        n = min(len(robust.images), len(other.images))
        apart = difference(robust.confidence[:, -1], other.confidence[:, -1], paired=paired)
        found.append(_compared("information", apart, f"against {name}, n = {n}: confidence higher by {apart}", n))
        ahead, more = lead(robust, other)
        found.append(
            _compared("early", more, f"against {name}, n = {n}: ahead by {ahead}, {more} more than at the end", n)
        )
        fitted = _fitted(_logarithms(other), _logarithms(robust), paired=paired)
        n, slower = min(map(len, fitted)), difference(*fitted, paired=paired)
        found.append(_compared("convergence", slower, f"against {name}, n = {n}: log10 of it lower by {slower}", n))
    for name, other in others.items():
        found.append(_extremal("trough", name, extremum(other.confidence, other.budgets, sign=-1), len(other.images)))
    if robust is not None:
        top = extremum(robust.confidence, robust.budgets, sign=1)
        found.append(_extremal("peak", "robust", top, len(robust.images)))
    return found


def _compared(claim: str, apart: Estimate, detail: str, n: int) -> Finding:
    verdict = CONFIRMED if apart.low > 0 else CONTRADICTED if apart.high < 0 else UNDECIDED
    verdict = verdict if n >= FEWEST else UNDECIDED
    return Finding(wording(FIGURE_3_CLAIMS[claim]), verdict, [detail])


def _extremal(claim: str, name: str, found: Extremum, n: int) -> Finding:
    both = found.rise, found.fall
    verdict = CONTRADICTED if found.largest < NEGLIGIBLE else UNDECIDED
    if all(height.low > 0 and height.value >= NEGLIGIBLE for height in both):
        verdict = CONFIRMED
    verdict = verdict if n >= FEWEST else UNDECIDED
    where = f"{name}, n = {n}: the {claim} is at {found.budget} iterations"
    apart = f"{found.rise} from the curve before it and {found.fall} from its end"
    detail = f"{where}, by {apart}; at most {found.largest:.2f} in 97.5 % of resamples"
    return Finding(wording(FIGURE_3_CLAIMS[claim]), verdict, [detail])


def _top(curve: Numbers) -> tuple[int, int]:
    """Where the curve is lowest before its top, and where that top is.

    The top is the inner point highest above both this lowest point and the end.
    """
    lowest = np.minimum.accumulate(curve)[:-2]
    inner = curve[1:-1]
    top = int(np.minimum(inner - lowest, inner - curve[-1]).argmax()) + 1
    return int(curve[:top].argmin()), top


def _crossing(apart: Numbers, budgets: tuple[int, ...]) -> float | None:
    """The last change of sign, linear in the logarithm of the iterations."""
    unlike = np.flatnonzero(np.sign(apart) != np.sign(apart[-1]))
    if not len(unlike):
        return None
    last = int(unlike[-1])
    share = apart[last] / (apart[last] - apart[last + 1])
    low, high = np.log(budgets[last]), np.log(budgets[last + 1])
    return float(np.exp(low + share * (high - low)))


def _fitted(first: Numbers, second: Numbers, *, paired: bool) -> tuple[Numbers, Numbers]:
    """Both without the images whose network diverged.

    If ``paired``, their partners are left out too.
    """
    one, other = np.isfinite(first), np.isfinite(second)
    return (first[one & other], second[one & other]) if paired else (first[one], second[other])


def _logarithms(of: SetCurve) -> Numbers:
    means: Numbers = np.log10(of.loss).mean(axis=1)
    return means


def _loss(record: Record) -> float:
    return np.nan if record.loss is None else record.loss


def _resampled(values: Numbers, seed: int = 0) -> Numbers:
    means: Numbers = resampled_means(torch.from_numpy(values), seed=seed).numpy()
    return means


def _ends(values: Numbers) -> tuple[float, float]:
    low, high = interval(torch.from_numpy(values)).tolist()
    return low, high
