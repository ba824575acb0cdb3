"""Accuracy against ε as a figure: a panel a defence and a line an attacker."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dipdefense.evaluation.adaptive.judging import Verdict
from dipdefense.evaluation.adaptive.names import WORST_CASE, Column, column_title, title

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, Verdict]]
"""Verdicts by ε, ascending."""

# Okabe and Ito 2008, which the colour-blind can tell apart, and three more.
_COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#7A5195", "#8C564B", "#666666")
_ACROSS = 4


def accuracy_by_epsilon(curves: Mapping[Column, Mapping[str, Curve]], *, about: str) -> Figure:
    """Accuracy of a single draw; the band is the worst case's Wilson 95 % interval.

    Args:
        curves: by defence, then by attack.
        about: a sentence below the title.

    Raises:
        ImportError: Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need Matplotlib: pip install "dipdefense[demo]"') from error
    across = max(1, min(len(curves), _ACROSS))
    rows = max(1, -(-len(curves) // across))
    figure = Figure(figsize=(max(2.9 * across, 6.0), 2.6 * rows + 1.8), layout="constrained")
    grid = figure.subplots(rows, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.remove()
    names = list(dict.fromkeys(name for own in curves.values() for name in own if name not in ("noise", WORST_CASE)))
    colours = dict(zip(names, _COLOURS * len(names), strict=False)) | {"noise": "0.65", WORST_CASE: "black"}
    for (column, own), axes in zip(curves.items(), grid.flat, strict=False):
        for name, curve in own.items():
            _line(axes, name, curve, colours[name])
        axes.set_title(column_title(column), fontsize=9)
        axes.set(ylim=(-2, 102), xlim=(0, None))
        axes.grid(color="0.92", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, labelbottom=True)
    # No label of the figure: it would lie on the legend below.
    for axes in figure.axes:
        axes.set_xlabel("ε", fontsize=9)
    figure.supylabel("accuracy of a single draw, %", fontsize=9)
    lines = textwrap.wrap(about, int(13 * figure.get_figwidth()))
    figure.suptitle("\n".join(["Attackers who know the defence", *lines]), x=0.01, ha="left", fontsize=9)
    known: dict[str, Artist] = {}
    for axes in figure.axes:
        known |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(3, across + 1)
    figure.legend([*known.values()], [*known], loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def _line(axes: Axes, attack: str, curve: Curve, colour: str) -> None:
    places = [epsilon for epsilon, _ in curve]
    heights = [100 * verdict.mean for _, verdict in curve]
    worst = attack == WORST_CASE
    # The worst case lies behind the attacks that it is made of.
    axes.plot(
        places, heights, marker="o", markersize=3, color=colour, linewidth=5 if worst else 1.4,
        linestyle="--" if attack == "noise" else "-", alpha=0.35 if worst else 1, label=title(attack),
        zorder=2 if worst else 3,
    )  # fmt: skip
    if worst:
        low, high = zip(*([100 * end for end in v.interval(v.mean)] for _, v in curve), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.1, linewidth=0)
