"""Figures of one run, from its records alone.

They are the table as bars, accuracy by budget, and recovery by confidence.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.records import Run
from dipdefense.evaluation.statistics import Cell
from dipdefense.paper.labels import (
    TITLES,
    Column,
    banner,
    column_title,
    columns,
    published_title,
    shown,
    subject,
)
from dipdefense.paper.published import beside, printed_columns, printed_number
from dipdefense.paper.tables import ADVERSARIES, table_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

# Confidences nearer to 0 or 1 are plotted here, or the axis would have no end.
_EDGE = 1e-5
_MARKS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)

# Panels in a row, and points from which they are smaller.
_ACROSS, _MANY = 3, 100


def bars(run: Run, *, table: int) -> Figure:
    """The table: bars with 95 % intervals, and the published numbers as markers.

    Raises:
        ImportError: Matplotlib is missing.
    """
    cells = shown(table_cells(run))
    found = {(cell.condition, cell.column): cell for cell in cells}
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    numbers = beside(run.configuration["input"])
    measured, published = columns(cells), printed_columns({cell.condition for cell in cells}, numbers)
    # A published number stands on the bar of its column, or in a place of its own after the bars if there is none.
    slots = list(dict.fromkeys([*measured, *published]))
    width = 1 / (len(slots) + 1.5)
    colours = {column: _colour(column, measured) for column in measured}
    markers = dict(zip(printed_columns(("clean", "average")), "oX^sD", strict=True))

    figure = blank(max(8.0, 2.0 + 0.17 * len(slots) * len(conditions)), 5.2)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for place, column in enumerate(slots):
        positions = [index + (place - (len(slots) - 1) / 2) * width for index in range(len(conditions))]
        if column in colours:
            own = [found[condition, column] for condition in conditions]
            heights = [100 * cell.accuracy for cell in own]
            below = [100 * (cell.accuracy - cell.interval.low) for cell in own]
            above = [100 * (cell.interval.high - cell.accuracy) for cell in own]
            axes.bar(positions, heights, 0.92 * width, color=colours[column], label=column_title(*column), zorder=2)
            red, green, blue = colours[column]
            darker = (0.55 * red, 0.55 * green, 0.55 * blue)
            axes.errorbar(positions, heights, (below, above), fmt="none", ecolor=darker, elinewidth=1.2, zorder=3)
        if column in published:
            pairs = [(x, printed_number(name, *column)) for x, name in zip(positions, conditions, strict=True)]
            known = [(x, number.percent) for x, number in pairs if number]
            axes.plot(
                *zip(*known, strict=True),
                marker=markers[column],
                label=published_title(*column),
                markersize=5.5,
                markerfacecolor="white",
                markeredgecolor="black",
                linestyle="none",
                clip_on=False,
                zorder=4,
            )
    axes.set_xticks(range(len(conditions)), [textwrap.fill(condition_title(name), 14) for name in conditions])
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 100), xlim=(-0.5, len(conditions) - 0.5), ylabel="top-1 accuracy, %")
    axes.grid(axis="y", color="0.88", zorder=0)
    about = f"{subject(run, cells[0].n)} Lines: 95 % Wilson intervals."
    caption(figure, partial(axes.set_title, loc="left"), TITLES[table], [*banner(run, cells), about])
    handles, labels = axes.get_legend_handles_labels()
    bars_first = sorted(range(len(labels)), key=lambda index: labels[index].startswith("published"))
    figure.legend(
        [handles[index] for index in bars_first],
        [labels[index] for index in bars_first],
        loc="outside lower center",
        ncols=4 if figure.get_figwidth() < 14 else 6,
        frameon=False,
        fontsize=8,
    )
    return figure


def accuracy_by_budget(run: Run) -> Figure:
    """Accuracy against the iterations, a line a condition, with Wilson 95 % bands.

    Not in the paper, which has three budgets. The defence's cost shows where the clean curve stays below the dashes.

    Raises:
        ImportError: Matplotlib is missing.
    """
    cells = [cell for cell in table_cells(run) if cell.condition != "average"]
    figure = blank(8.0, 5.8)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for condition in _reconstructed(cells):
        colour, line = condition_style(condition)
        curve = sorted(
            (cell for cell in cells if (cell.condition, cell.defence) == (condition, "dip")),
            key=lambda cell: cell.budget,
        )
        budgets = [cell.budget for cell in curve]
        low, high = zip(*([100 * end for end in cell.interval] for cell in curve), strict=True)
        axes.fill_between(budgets, low, high, color=colour, alpha=0.12, linewidth=0)
        label = condition_title(condition)
        axes.plot(budgets, [100 * cell.accuracy for cell in curve], line, color=colour, label=label, linewidth=1.8)
        undefended = [cell for cell in cells if (cell.condition, cell.defence) == (condition, "none")]
        for cell in undefended:
            height = 100 * cell.accuracy
            if condition == "clean":
                axes.axhline(height, color=colour, linestyle="--", linewidth=1.4, label="clean, no defence")
            else:
                axes.axhline(height, color=colour, linestyle=":", linewidth=1.0)
    axes.set(ylim=(-1, 101), xlim=(0, None), xlabel="iterations of the reconstruction", ylabel="top-1 accuracy, %")
    axes.grid(color="0.9", zorder=0)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    title = f"Accuracy against the budget, n = {cells[0].n} (defence-unaware attacks)"
    about = f"{subject(run, cells[0].n)} Bands: 95 % Wilson intervals. Dotted: no defence."
    caption(figure, partial(axes.set_title, loc="left"), title, [*banner(run, cells), about])
    return figure


def clean_confidences(run: Run) -> dict[str, float]:
    """The true class's confidence by image, undefended and clean.

    Images whose output was not finite are left out.
    """
    clean = (record for record in run.records if (record.condition, record.defence) == ("clean", "none"))
    return {record.image: record.confidence for record in clean if record.confidence is not None}


def recovery_by_confidence(run: Run) -> Figure:
    """Recovery behind the reconstruction against the clean image's confidence.

    Not in the paper. It shows whether images of low confidence recover. Both confidences are the true class's, and the
    clean image is undefended. A panel for the clean images and each attack, a point an image, at the largest budget
    that tables show and with the first seed; Spearman's rank correlation is in the panel's title.

    Raises:
        ValueError: the confidence of no undefended clean image is known.
        ImportError: Matplotlib is missing.
    """
    from scipy.stats import spearmanr

    clean = clean_confidences(run)
    if not clean:
        raise ValueError("recovery by confidence needs the undefended clean images, and the run has none")
    cells = shown(table_cells(run))
    last = max(cell.budget for cell in cells if cell.defence == "dip")
    seed = min(record.seed for record in run.records)
    conditions = [name for name in _reconstructed(cells) if not name.startswith("noise")]
    rows, across = math.ceil(len(conditions) / _ACROSS), min(len(conditions), _ACROSS)
    figure = blank(8.0, 1.6 + 2.4 * rows)
    panels = below(figure)
    grid = panels.subplots(rows, across, sharex=True, sharey=True, squeeze=False)
    inside = [_inside(confidence) for confidence in clean.values()]
    marks = [mark for mark in _MARKS if min(inside) <= mark <= max(inside)]
    for axes in grid.flat[len(conditions) :]:
        axes.remove()
    for condition, axes in zip(conditions, grid.flat, strict=False):
        points = [
            (clean[record.image], record.confidence, record.correct)
            for record in run.records
            if (record.condition, record.defence, record.budget, record.seed) == (condition, "dip", last, seed)
            and record.image in clean
            and record.confidence is not None
        ]
        before, after, correct = zip(*points, strict=True) if points else ((), (), ())
        label = f"{condition_title(condition)}, n = {len(points)}"
        if len(set(before)) > 2 and len(set(after)) > 1:
            rho, p = spearmanr(before, after)
            label += f"\nρ = {rho:.2f}, p = {p:.2g}"
        colour, _ = condition_style(condition)
        face = [colour if right else "white" for right in correct]
        size = 20 if len(points) < _MANY else 9
        places = [_inside(confidence) for confidence in before]
        axes.scatter(places, after, s=size, c=face, edgecolors=colour, linewidths=0.9, alpha=0.8, zorder=3)
        axes.set_title(label, fontsize=9)
        axes.set_xscale("logit")
        axes.minorticks_off()
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.set_ylim(-0.04, 1.04)
        axes.grid(color="0.92", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels.supxlabel("confidence of the true class: clean, undefended", fontsize=9)
    panels.supylabel(f"confidence of the true class:\nbehind {column_title('dip', last)}", fontsize=9)
    title = f"Recovery against the clean image's confidence, n = {cells[0].n}"
    about = (
        f"{subject(run, cells[0].n)} A point is an image, filled if it is classified correctly behind the "
        "reconstruction. ρ: Spearman's rank correlation."
    )
    caption(figure, partial(panels.suptitle, x=0.01, ha="left"), title, [*banner(run, cells), about])
    return figure


def _inside(confidence: float) -> float:
    return min(max(confidence, _EDGE), 1 - _EDGE)


def _reconstructed(cells: Sequence[Cell]) -> list[str]:
    """The conditions with a reconstruction, in the table's order."""
    return list(
        dict.fromkeys(cell.condition for cell in cells if cell.defence == "dip" and cell.condition != "average")
    )


def condition_style(condition: str) -> tuple[str, str]:
    """Colour and line of a condition.

    Attacks have colours that the colour-blind can tell apart (Okabe and Ito 2008). The noise controls are grey and
    dashed; an attack rounded to 8 bits is dotted in its colour.
    """
    name = condition.removesuffix("-8bit")
    if name.startswith("noise"):
        return {"noise-2": "0.75", "noise-5": "0.6", "noise-10": "0.45"}[name], "--"
    palette = ("#000000", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7")
    return dict(zip(("clean", *ADVERSARIES), palette, strict=True))[name], "-" if name == condition else ":"


def blank(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need Matplotlib: pip install "dipdefense[demo]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def below(figure: Figure) -> SubFigure:
    """The part of a figure for several panels with one heading.

    ``caption`` puts its paragraphs on top of it.
    """
    return figure.add_subfigure(figure.add_gridspec()[0, 0])


def caption(figure: Figure, put: Callable[..., object], title: str, paragraphs: Sequence[str]) -> None:
    """A title in bold and, where ``put`` puts them, paragraphs below it.

    The paragraphs are red where the first is a warning.
    """
    characters = int(11.5 * figure.get_figwidth())
    lines = (textwrap.wrap(paragraph, characters, break_on_hyphens=False) for paragraph in paragraphs)
    text = "\n".join("\n".join(each) for each in lines)
    put(f"{text}\n", fontsize=9, color="firebrick" if paragraphs[0].startswith("REDUCED") else "black")
    figure.suptitle(textwrap.fill(title, int(9.5 * figure.get_figwidth())), x=0.01, ha="left", fontweight="bold")


def _colour(column: Column, columns: Sequence[Column]) -> tuple[float, float, float]:
    """Grey, oranges, greens and blues for the defences, darker with the budget."""
    light, dark = {
        "none": ((0.62, 0.62, 0.62), (0.62, 0.62, 0.62)),
        "randomisation": ((0.97, 0.76, 0.47), (0.87, 0.53, 0.16)),
        "low-pass": ((0.70, 0.85, 0.62), (0.27, 0.55, 0.20)),
        "dip": ((0.66, 0.81, 0.93), (0.10, 0.35, 0.62)),
    }[column[0]]
    budgets = [budget for defence, budget in columns if defence == column[0]]
    share = budgets.index(column[1]) / max(len(budgets) - 1, 1)
    red, green, blue = (a + share * (b - a) for a, b in zip(light, dark, strict=True))
    return red, green, blue
