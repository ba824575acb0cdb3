"""The report on Figure 3: Markdown, CSV, plots, and the records.

All but the picture of the sets comes from the records alone.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dipdefense.classifiers import CIFAR10_CATEGORIES
from dipdefense.evaluation import Run
from dipdefense.evaluation.report import Rows, Section, markdown, png, provenance, write_files
from dipdefense.paper.figure3_claims import (
    EARLY,
    SetCurve,
    band,
    crossing,
    curve,
    extremum,
    findings,
    lead,
    mean_interval,
)
from dipdefense.paper.figure3_sets import ImageSet, reduction
from dipdefense.paper.figures import panels, show
from dipdefense.paper.labels import network
from dipdefense.paper.published import about_parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[tuple[int, str], Run]
"""By architecture and set."""

TITLE = "Figure 3: confidence against DIP iterations, robust and non-robust images"

_CLAIMS = (
    "Confirmed or contradicted: the 95 % bootstrap interval over the images lies on one side of zero. A peak or trough "
    "is taken, for each image, where the mean over the other half of the images has it, so that noise alone makes "
    "none. It is confirmed if it lies significantly above (below) both a point before it and the end of the curve, and "
    "contradicted if it has less than 0.02 in 97.5 % of the resampled curves. Below 20 images nothing is decided. "
    "Nothing is corrected for several claims or sets."
)
_COLOURS = {"original": "#000000", "robust": "#0072B2", "non-robust": "#D55E00", "random-target": "#CC79A7"}
_CROSSING = ("robust", "non-robust")
_MARKS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_MEASURES = {"confidence": "confidence of the label", "correct": "accuracy"}


def write_report(runs: Runs, sets: Sequence[ImageSet], *, folder: Path, batch: int = 1) -> list[Path]:
    """Write figure3.md, .csv, .png, figure3-sets.png, and the records as .jsonl.

    There is a file of records for each architecture and set.

    Args:
        runs: from ``measure_sets``.
        sets: from ``open_sets``.
        folder: made if need be.
        batch: images that are made at once.

    Raises:
        ValueError: a run lacks outcomes.
        ImportError: Matplotlib is missing.
    """
    curves = {key: curve(run) for key, run in runs.items()}
    files: dict[str, str | bytes] = {
        "figure3.md": markdown(_sections(runs, curves)),
        "figure3.csv": as_csv(curves),
        "figure3.png": png(draw(runs, curves)),
        "figure3-sets.png": png(draw_sets(sets, batch=batch)),
    }
    records = {f"figure3-architecture-{architecture}-{name}.jsonl": run for (architecture, name), run in runs.items()}
    return write_files(folder, files, records)


def draw(runs: Runs, curves: Mapping[tuple[int, str], SetCurve]) -> Figure:
    """Confidence and accuracy by iterations, a column an architecture, a line a set."""
    architectures = list(dict.fromkeys(architecture for architecture, _ in runs))
    told = [*_reduced(runs, curves), f"{_subject(runs)} Bands: 95 %. Dotted: the images themselves."]
    figure, part = panels(max(7.0, 5.0 * len(architectures)), 7.4, TITLE, told)
    grid = part.subplots(2, len(architectures), squeeze=False, sharex="col")
    for column, architecture in enumerate(architectures):
        for row, (values, label) in enumerate(_MEASURES.items()):
            axes = grid[row, column]
            for (own, name), each in curves.items():
                if own == architecture:
                    _line(axes, each, getattr(each, values), name)
            axes.set(xscale="log", ylim=(-0.01, 1.01), ylabel=label)
            last = max(each.budgets[-1] for (own, _), each in curves.items() if own == architecture)
            axes.set_xticks(marks := [mark for mark in _MARKS if mark <= last], list(map(str, marks)))
            axes.minorticks_off()
            axes.grid(color="0.9", zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
        for (own, name), each in curves.items():
            if own == architecture:
                grid[0, column].axhline(each.before.mean(), color=_COLOURS[name], linestyle=":", linewidth=1.0)
        if {(architecture, name) for name in _CROSSING} <= curves.keys():
            _mark_crossing(grid[0, column], *(curves[architecture, name] for name in _CROSSING))
        grid[0, column].set_title(f"architecture {architecture}, n = {_counts(curves, architecture)}", fontsize=10)
        grid[1, column].set_xlabel("DIP iterations")
    part.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_sets(sets: Sequence[ImageSet], *, batch: int, count: int = 8) -> Figure:
    """The first images of each set, a row a set, with label and confidence.

    The confidence is the external classifier's in that label.

    Args:
        sets: from ``open_sets``.
        batch: images at once.
        count: images of each set.

    Raises:
        ImportError: Matplotlib is missing.
    """
    count = min(count, *(len(each.subject.ids) for each in sets))
    about = "Below each image its label and the confidence of that. External classifier: "
    about += f"{sets[0].subject.classifier.name}."
    figure, part = panels(1.25 * count + 0.5, 1.6 * len(sets) + 0.6, "The sets of Figure 3", [about])
    grid = part.subplots(len(sets), count, squeeze=False)
    for row, each in zip(grid, sets, strict=True):
        found = each.made(count, batch=batch)
        classifier = each.subject.classifier
        with torch.no_grad():
            scores = classifier(found.images.to(next(classifier.parameters()).device)).softmax(dim=1).cpu()
        for axes, image, label, confidences in zip(row, found.images, found.labels.tolist(), scores, strict=True):
            show(axes, image, f"{CIFAR10_CATEGORIES[label]} {confidences[label]:.2f}")
        row[0].set_ylabel(each.name, fontsize=9)
    return figure


def as_csv(curves: Mapping[tuple[int, str], SetCurve]) -> str:
    """Every mean of the curves with its interval.

    At 0 iterations are the images themselves. Losses leave out the images whose network diverged.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["architecture", "set", "iterations", "n", "measure", "mean", "from", "to"])
    for (architecture, name), each in curves.items():
        own = [architecture, name]
        writer.writerow([*own, 0, len(each.images), "confidence", *(f"{x:.4f}" for x in mean_interval(each.before))])
        finite = each.loss[~np.isnan(each.loss).any(axis=1)]
        for values, measure in ((each.confidence, "confidence"), (each.correct, "accuracy"), (finite, "loss")):
            curves_of = zip(each.budgets, values.mean(axis=0), *band(values), strict=True) if len(values) else ()
            for budget, *numbers in curves_of:
                writer.writerow([*own, budget, len(values), measure, *(f"{x:.4g}" for x in numbers)])
    return lines.getvalue()


def _mark_crossing(axes: Axes, robust: SetCurve, other: SetCurve) -> None:
    found = crossing(robust, other)
    if found.budget is not None:
        axes.axvline(found.budget, color="0.4", linestyle="--", linewidth=1.0)
        axes.annotate(
            f"cross at {found.budget:.0f} ", (found.budget, 0.99), ha="right", va="top", fontsize=8, color="0.3"
        )


def _line(axes: Axes, each: SetCurve, values: Any, name: str) -> None:
    low, high = band(values)
    axes.fill_between(each.budgets, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)
    axes.plot(each.budgets, values.mean(axis=0), color=_COLOURS[name], label=name, linewidth=1.8)


def _sections(runs: Runs, curves: Mapping[tuple[int, str], SetCurve]) -> Iterator[Section]:
    yield Section(TITLE, [*_reduced(runs, curves), _subject(runs)], _extrema(curves))
    crossings = _crossings(curves)
    if len(crossings) > 1:
        about = (
            "From which iteration on the mean confidence of robust images stays above the other's (or below it, where "
            "it ends below), with the 95 % bootstrap interval of the resamples that cross, and their share. Ahead: of "
            f"the other's in the mean over the first {EARLY} iterations."
        )
        yield Section("Where the curves cross", [about], crossings)
    by_architecture: dict[int, dict[str, SetCurve]] = defaultdict(dict)
    for (architecture, name), each in curves.items():
        by_architecture[architecture][name] = each
    listed = [
        "\n".join([f"{found.verdict.upper()}, architecture {architecture}: {found.claim}", *found.details])
        for architecture, own in by_architecture.items()
        for found in findings(own)
    ]
    if listed:
        yield Section("The paper's claims, for this classifier and these sets", [_CLAIMS], items=listed)
    notes = [note for run in runs.values() for note in about_parameters(network(run), run.configuration["input"])]
    lost = sum(each.diverged for each in curves.values())
    diverged = [f"{lost} fits diverged: their confidence counts as 0, and losses are of the others."] if lost else []
    yield Section("Notes", items=[*_NOTES, *dict.fromkeys(notes), *diverged])
    for (architecture, name), run in runs.items():
        yield Section(f"How architecture {architecture}, {name}, was measured", items=list(provenance(run)))


_NOTES = (
    "The paper takes “pre-generated” sets of Ilyas et al. 2019 and names neither which of the four released ones, nor "
    "the number of images, nor the external classifier. By their names the sets are robust_CIFAR and non_robust_CIFAR, "
    "both of which have the features of an image to a network and keep its label; random-target is drand_CIFAR.",
    "Robust and non-robust: from a random other image, L2 distance of the penultimate features, to the robust and to "
    "the standard network. Random-target: L2 PGD on the standard network from the image itself towards a random other "
    "class, which is the label.",
)


def _extrema(curves: Mapping[tuple[int, str], SetCurve]) -> Rows:
    rows = [["architecture", "set", "n", "images themselves", "peak at", "above the end by", "trough at", "below the "
             "curve before by", "end at", "confidence there", "accuracy there"]]  # fmt: skip
    for (architecture, name), each in curves.items():
        peak, trough = (extremum(each.confidence, each.budgets, sign=sign) for sign in (1, -1))
        rows.append([
            str(architecture), name, str(len(each.images)), str(mean_interval(each.before)), str(peak.budget),
            str(peak.fall), str(trough.budget), str(trough.rise), str(each.budgets[-1]),
            str(mean_interval(each.confidence[:, -1])), str(mean_interval(each.correct[:, -1])),
        ])  # fmt: skip
    return rows


def _crossings(curves: Mapping[tuple[int, str], SetCurve]) -> Rows:
    rows = [["architecture", "robust against", "iterations", "resamples that cross, %", "ahead early by"]]
    for (architecture, name), other in curves.items():
        robust = curves.get((architecture, "robust"))
        if name != "robust" and robust is not None:
            found = crossing(robust, other)
            where = "none" if found.budget is None else f"{found.budget:.0f} [{found.low:.0f}, {found.high:.0f}]"
            rows.append([str(architecture), name, where, f"{100 * found.share:.0f}", str(lead(robust, other)[0])])
    return rows


def _counts(curves: Mapping[tuple[int, str], SetCurve], architecture: int) -> str:
    counts = sorted({len(each.images) for (own, _), each in curves.items() if own == architecture})
    return " to ".join(map(str, counts[:1] + counts[1:][-1:]))


def _subject(runs: Runs) -> str:
    each = [run.configuration for run in runs.values()]
    data = ", ".join(dict.fromkeys(own["data"] for own in each))
    return f"External classifier: {each[0]['classifier']}. Images: {data}, not chosen by it."


def _reduced(runs: Runs, curves: Mapping[tuple[int, str], SetCurve]) -> list[str]:
    iterations = {architecture: each.budgets[-1] for (architecture, _), each in curves.items()}
    told = {name: run.configuration["set"] for (_, name), run in runs.items()}
    return reduction(told, images=min(len(each.images) for each in curves.values()), iterations=iterations)
