"""Figure 1 of one run, from its records alone.

One picture has a panel an adversary, the other a panel an adversary and strength.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dipdefense.evaluation.curves import Curve
from dipdefense.evaluation.protocol import attack_named
from dipdefense.paper.figure1_setting import EPSILONS, NAMES
from dipdefense.paper.plots import below, blank, caption

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito 2008: colours that the colour-blind can tell apart.
_COLOURS = dict(zip(EPSILONS, ("#009E73", "#0072B2", "#D55E00", "#CC79A7"), strict=True))
_CLEAN = "black"
_BAND, _FAINT = 0.15, 0.35

_MARKS = (
    "Bands: bootstrap intervals of the mean, 95\N{NO-BREAK SPACE}%. Dot: the mean's peak. Arrowhead: the adversarial "
    "images themselves."
)


def by_adversary(curves: Sequence[Curve], title: str, paragraphs: Sequence[str]) -> Figure:
    """A panel an adversary, as in the paper.

    Each has the mean with its band at every strength, and that of the clean images.

    Args:
        curves: from ``confidence_curves``; at least one of an attack.
        title: in bold.
        paragraphs: below it.

    Raises:
        ImportError: Matplotlib is missing.
    """
    table = _table(curves)
    names = [name for name in NAMES if any(attack == name for attack, _ in table)]
    clean = [curve for curve in curves if curve.condition == "clean"]
    figure = blank(max(3.5 * len(names), 8.0), 4.6)
    part = below(figure)
    panels = part.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for other in clean:
            _mean(axes, other, _CLEAN, "clean")
        for epsilon in EPSILONS:
            if (curve := table.get((name, epsilon))) is not None:
                _mean(axes, curve, _COLOURS[epsilon], f"ε = {epsilon}")
                _adversarial(axes, curve, _COLOURS[epsilon])
        _dress(axes, name)
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _finish(figure, part, handles, title, paragraphs)
    return figure


def by_strength(curves: Sequence[Curve], title: str, paragraphs: Sequence[str]) -> Figure:
    """A panel an adversary and strength.

    Each has the images as faint lines, the mean with its band, and the clean images' mean.

    Args:
        curves: from ``confidence_curves``; at least one of an attack.
        title: in bold.
        paragraphs: below it.

    Raises:
        ImportError: Matplotlib is missing.
    """
    table = _table(curves)
    names = [name for name in NAMES if any(attack == name for attack, _ in table)]
    epsilons = [epsilon for epsilon in EPSILONS if any(strength == epsilon for _, strength in table)]
    clean = [curve for curve in curves if curve.condition == "clean"]
    figure = blank(max(3.5 * len(names), 8.0), 1.8 + 1.9 * len(epsilons))
    part = below(figure)
    grid = part.subplots(len(epsilons), len(names), sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Artist] = {}
    for row, epsilon in zip(grid, epsilons, strict=True):
        for axes, name in zip(row, names, strict=True):
            if (curve := table.get((name, epsilon))) is None:
                axes.set_axis_off()
                continue
            colour = _COLOURS[epsilon]
            for image in curve.confidences.tolist():
                axes.plot(curve.budgets, image, color=colour, linewidth=0.6, alpha=_FAINT, label="an image")
            for other in clean:
                axes.plot(other.budgets, other.mean, color=_CLEAN, linewidth=1.3, linestyle="--", label="clean, mean")
            _mean(axes, curve, colour, "mean")
            _adversarial(axes, curve, colour)
            _dress(axes, f"{name}, ε = {epsilon}")
            axes.label_outer()
            handles = {label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True)} | handles
    _finish(figure, part, handles, title, paragraphs)
    return figure


def _table(curves: Sequence[Curve]) -> dict[tuple[str, float], Curve]:
    """The attacks' curves by name and strength."""
    attacks = ((attack_named(curve.condition), curve) for curve in curves)
    return {(attack.name, attack.epsilon): curve for attack, curve in attacks if attack is not None}


def _mean(axes: Axes, curve: Curve, colour: str, label: str) -> None:
    """The mean with its band, and a dot at its peak."""
    axes.fill_between(curve.budgets, *curve.band, color=colour, alpha=_BAND, linewidth=0)
    axes.plot(curve.budgets, curve.mean, color=colour, linewidth=1.8, label=label)
    peak = int(curve.peak.value)
    axes.plot([peak], [curve.at(peak).value], "o", color=colour, markersize=5, markeredgecolor="white")


def _adversarial(axes: Axes, curve: Curve, colour: str) -> None:
    """An arrowhead at the right edge, at the adversarial images' own mean confidence."""
    if curve.undefended is not None:
        height = curve.undefended.mean().item()
        axes.plot([1.0], [height], "<", color=colour, transform=axes.get_yaxis_transform(), clip_on=False)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set(ylim=(-0.02, 1.02), xlim=(0, None), xlabel="iterations")
    axes.grid(color="0.92", zorder=0)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _finish(
    figure: Figure, part: SubFigure, handles: Mapping[str, Artist], title: str, paragraphs: Sequence[str]
) -> None:
    """The heading, the axis's name, and one legend for all panels."""
    part.supylabel("true class's confidence", fontsize=9)
    caption(figure, partial(part.suptitle, x=0.01, ha="left"), title, [*paragraphs, _MARKS])
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
