"""Plots of section 6: confidence by iterations, and differences of accuracy.

They come from the records of its networks alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from dipdefense.evaluation.protocol import condition_title
from dipdefense.paper.architecture_claims import MARGIN
from dipdefense.paper.architecture_outcomes import Outcomes, contrast
from dipdefense.paper.labels import subject
from dipdefense.paper.plots import below, blank, caption, condition_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 5


def confidences(found: Sequence[Outcomes], warning: str) -> Figure:
    """The true class's mean confidence against the iterations, a panel a network.

    Behind each variant's curves are the original's in grey.

    Args:
        found: from ``outcomes``.
        warning: that the setting is reduced, or nothing.

    Raises:
        ImportError: Matplotlib is missing.
    """
    original = found[0]
    across = min(len(found), _ACROSS)
    rows = math.ceil(len(found) / across)
    figure = blank(max(8.0, 2.1 * across), 2.1 + 1.75 * rows)
    panels = below(figure)
    grid = panels.subplots(rows, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.remove()
    for one, axes in zip(found, grid.flat, strict=False):
        for condition in original.conditions:
            colour, line = condition_style(condition)
            if one is not original:
                behind = original.curves[condition].mean
                axes.plot(original.budgets, behind, line, color="0.75", linewidth=1.2, zorder=2)
            label = condition_title(condition) if one is original else None
            axes.plot(one.budgets, one.curves[condition].mean, line, color=colour, label=label, linewidth=1.6, zorder=3)
            height = one.confidence(condition, one.peak.budget)
            axes.plot([one.peak.budget], [height], "o", color=colour, markersize=4, zorder=4)
        axes.set_title(f"{one.title}, {one.peak.budget}", fontsize=9)
        axes.set(ylim=(-0.02, 1.02), xlim=(0, None))
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.grid(color="0.92", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels.supxlabel("iterations of the reconstruction", fontsize=9)
    panels.supylabel("mean confidence\nof the true class", fontsize=9)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    about = (
        f"{subject(original.run, original.n)} Grey: the original network. Dots, and the number "
        "beside each title: the budget where the confidence under attack peaks."
    )
    title = f"Confidence by network and iterations, n = {original.n} (defence-unaware attacks)"
    caption(figure, partial(panels.suptitle, x=0.01, ha="left"), title, [*([warning] if warning else []), about])
    return figure


def differences(found: Sequence[Outcomes], warning: str) -> Figure:
    """Accuracy less the original's, each at its own peak, with 95 % intervals.

    Args:
        found: from ``outcomes``; one variant at least.
        warning: that the setting is reduced, or nothing.

    Raises:
        ImportError: Matplotlib is missing.
    """
    original, *variants = found
    conditions = original.conditions
    figure = blank(8.0, 2.2 + (0.2 + 0.14 * len(conditions)) * len(variants))
    axes = figure.add_subplot()
    axes.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.94", zorder=0)
    axes.axvline(0, color="0.5", linewidth=1, zorder=1)
    for place, condition in enumerate(conditions):
        colour, _ = condition_style(condition)
        shown = [contrast(one, original, condition).difference for one in variants]
        rows = [row + (place - (len(conditions) - 1) / 2) * 0.7 / len(conditions) for row in range(len(variants))]
        values = [100 * value for value, *_ in shown]
        ends = ([100 * (d.value - d.low) for d in shown], [100 * (d.high - d.value) for d in shown])
        label = condition_title(condition)
        axes.errorbar(
            values, rows, xerr=ends, fmt="o", color=colour, markersize=4, elinewidth=1.4, label=label, zorder=3
        )
    axes.set_yticks(range(len(variants)), [one.title for one in variants], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(variants) - 0.4, -0.6), xlabel="accuracy less the original network's, points")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="0.88", zorder=0)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    about = (
        f"{subject(original.run, original.n)} Each network at the budget where its own confidence "
        f"under attack peaks. Lines: 95 % intervals (Newcombe). Band: {100 * MARGIN:.0f} points either way."
    )
    title = f"Accuracy against the original network's, n = {original.n} (defence-unaware attacks)"
    caption(figure, partial(axes.set_title, loc="left"), title, [*([warning] if warning else []), about])
    return figure
