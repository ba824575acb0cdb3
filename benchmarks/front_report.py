"""Accuracy against time: tables, a test against the compact network, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from scipy.stats import ttest_1samp

from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.report import Section
from dipdefense.evaluation.report import markdown as as_markdown
from dipdefense.evaluation.statistics import in_percent, mcnemar, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE = "compact"
CONDITIONS = ("clean", "fgsm-5", "bi-10")
TESTED = ("higher : lower", "p", "difference")


class Point(NamedTuple):
    """A candidate at a budget.

    Attributes:
        name: of the candidate.
        budget: iterations.
        time: in iterations of the compact network at the images' own size; 0 for a filter without a network.
        outcomes: by image, the share of the conditions under which it is classified correctly.
    """

    name: str
    budget: int
    time: float
    outcomes: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """The mean over images and conditions."""
        return fmean(self.outcomes.values())


def tested(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """The columns ``TESTED`` for pairs of shares.

    They are how often the first share is higher and how often lower, the sign test's p, and the difference in points.
    """
    test = mcnemar([own > other for own, other in pairs], [other > own for own, other in pairs])
    return [f"{test.only_first} : {test.only_second}", f"{test.p:.2g}", _difference(pairs)]


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    """With its 95 % interval: Newcombe's where every share is 0 or 1, else that of t."""
    differences = [100 * (own - other) for own, other in pairs]
    if {share for pair in pairs for share in pair} <= {0, 1}:
        low, high = (100 * end for end in paired_difference(*zip(*pairs, strict=True))[1:])
    elif len(set(differences)) == 1:
        return f"{differences[0]:+.1f}"
    else:
        low, high = ttest_1samp(differences, 0).confidence_interval()
    return f"{fmean(differences):+.1f} [{low:+.1f}, {high:+.1f}]"


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, in ascending order of time.

    No other point is as accurate in less time, or more accurate in the same time.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.time, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def reference(points: Sequence[Point]) -> Point:
    """The compact network at its largest budget."""
    return max((point for point in points if point.name == REFERENCE), key=lambda point: point.budget)


def fast(points: Sequence[Point]) -> list[Point]:
    """Each candidate at its best budget within half of the compact network's time.

    The most accurate is first.
    """
    limit = reference(points).time / 2
    chosen: dict[str, Point] = {}
    for point in points:
        known = chosen.get(point.name)
        if point.time <= limit and (known is None or (point.accuracy, -point.time) > (known.accuracy, -known.time)):
            chosen[point.name] = point
    return sorted(chosen.values(), key=lambda point: (-point.accuracy, point.time))


def markdown(points: Sequence[Point], *, images: int, source: str, classifier: str, bf16: Sequence[str] = ()) -> str:
    """The report; ``bf16`` names the candidates that were fitted in bf16, others not."""
    whole = reference(points)
    about = (
        f"{classifier}, {images} images of {source} that it classifies correctly; accuracy is the mean over "
        f"{', '.join(condition_title(name) for name in CONDITIONS)}, with the Wilson 95 % interval of {images} images. "
        f"Time is in iterations of the compact network. The attacks are defence-unaware: this is not robustness. "
        "The low-pass filters have no network: they make the image smaller, by that factor, and larger again."
        + (f" In bf16: {', '.join(bf16)}." if bf16 else "")
    )
    head = ["candidate", "iterations", "time", "accuracy, %"]
    return as_markdown(
        [
            Section("Accuracy against time", [about]),
            Section("The front", table=[head, *(_row(point) for point in front(points))]),
            Section(
                "At the last iteration",
                [
                    f"Against the compact network at {whole.budget} iterations "
                    f"({in_percent(whole.accuracy, images)}): candidates at as many and at their last, no budget being "
                    "chosen. On how many images the candidate has the higher share of conditions, and the lower; exact "
                    "sign test, two-sided, not corrected; the mean difference in points with its 95 % interval (t)."
                ],
                [[*head, *TESTED], *_against(_last(points, whole), whole)],
            ),
            Section(
                "At most half of the compact network's time",
                ["The same at the best budget, chosen on the same images, which flatters the candidate."],
                [[*head, *TESTED], *_against(fast(points), whole)],
            ),
            Section("Every candidate at its best budget", table=[head, *(_row(point) for point in _best(points))]),
        ]
    )


def _row(point: Point) -> list[str]:
    return [point.name, str(point.budget), f"{point.time:.0f}", in_percent(point.accuracy, len(point.outcomes))]


def _against(points: Iterable[Point], whole: Point) -> Iterator[list[str]]:
    for point in points:
        pairs = [(point.outcomes[image], whole.outcomes[image]) for image in whole.outcomes]
        yield [*_row(point), *tested(pairs)]


def _last(points: Sequence[Point], whole: Point) -> list[Point]:
    """The filters, and candidates at their last budget and at the compact network's.

    The compact network itself is left out.
    """
    own = {point.name: max(other.budget for other in points if other.name == point.name) for point in points}
    others = [point for point in points if point.name != REFERENCE]
    return [point for point in others if point.time == 0 or point.budget in (whole.budget, own[point.name])]


def _best(points: Sequence[Point]) -> list[Point]:
    names = dict.fromkeys(point.name for point in points)
    own = ([point for point in points if point.name == name] for name in names)
    return [max(group, key=lambda point: (point.accuracy, -point.time)) for group in own]


def picture(points: Sequence[Point]) -> Figure:
    """Every candidate's curve, and the front.

    The curves of the compact and of the paper's network are emphasised.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for point in points:
        if point.time == 0:
            axes.axhline(100 * point.accuracy, color="grey", linestyle="--", linewidth=0.8)
            place, told = (0.01, 100 * point.accuracy), f"{point.name}, no network"
            axes.annotate(told, place, xycoords=("axes fraction", "data"), va="bottom", fontsize="small")
    fitted = [point for point in points if point.time > 0]
    for index, name in enumerate(dict.fromkeys(point.name for point in fitted)):
        own = sorted((point for point in fitted if point.name == name), key=lambda point: point.budget)
        marker = {"compact": "s", "paper": "*"}.get(name, ".")
        width = 2.0 if name in (REFERENCE, "paper") else 1.0
        axes.plot(
            [point.time for point in own], [100 * point.accuracy for point in own], marker=marker, linewidth=width,
            color=f"C{index % 10}", linestyle="-" if index < 10 else "--", label=name, alpha=0.8,
        )  # fmt: skip
    best = front(fitted)
    axes.step(
        [point.time for point in best], [100 * point.accuracy for point in best], where="post", color="black",
        linewidth=1, linestyle=":", label="front",
    )  # fmt: skip
    axes.axvline(reference(points).time / 2, color="grey", linewidth=0.8)
    axes.set(
        xscale="log", xlabel="time, in iterations of the compact network (grey: half of its whole run)",
        ylabel="accuracy, %, mean over conditions", ylim=(0, 100),
        title=f"n = {len(points[0].outcomes)}, defence-unaware",
    )  # fmt: skip
    axes.legend(fontsize="small")
    return figure
