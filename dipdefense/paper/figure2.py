"""Figure 2 of the paper: one image's outputs by iteration, with MIG-SG saliency."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dipdefense.evaluation import command_line
from dipdefense.paper import figures
from dipdefense.saliency import mask, mig_sg, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUDGETS = (100, 200, 300, 400, 2000, 4000)
"""The iterations of the paper's figure."""

_ROWS = ("DIP output", "MIG-SG mask", "on the original")
_NOISE_STD, _PERCENTILE = 0.15, 99.0


def reproduce(*, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, reconstruct, classify, and write figure2.png and .json.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    groups = (partial(figures.add_example, attack="bi-10"), command_line.add_reconstruction)
    parser = command_line.parser(description, *groups)
    parser.add_argument("--steps", type=command_line.count, help="m of equation 1 (default: 20 on a GPU, else 10)")
    parser.add_argument("--samples", type=command_line.count, help="N of equation 1 (default: 10 on a GPU, else 5)")
    given = command_line.parse(parser, _defaults, arguments)
    with command_line.script(None):
        with command_line.usage():
            example = figures.open_example(given)
            config = figures.fitted(example, given)
            run = figures.reconstructed(example, config, given)
        outputs = run.images[:, 0]
        settings = {"steps": given.steps, "samples": given.samples, "noise_std": _NOISE_STD}
        maps = mig_sg(example.classifier, outputs, target=example.label, seed=example.seed, batch_size=8, **settings)
        told = figures.record(
            example,
            reconstruction=figures.reconstruction_record(example, config, given, run),
            saliency={"method": "MIG-SG", "baseline": "black", "percentile": _PERCENTILE, **settings},
        )
        paragraphs = [
            *figures.reduced(example, config, run.budgets, largest=BUDGETS[-1]),
            f"{figures.described(example)} Confidences are the true class's: clean "
            f"{figures.shown(told['undefended']['clean']['confidence'])}, attacked "
            f"{figures.shown(told['undefended']['attacked']['confidence'])}, of each output above it.",
        ]
        figure = draw(example.clean, outputs, mask(maps, _PERCENTILE), told["reconstruction"]["outputs"], paragraphs)
        figures.write(figure, told, folder=given.out, name="figure2")


def draw(
    original: Tensor, outputs: Tensor, masks: Tensor, outcomes: Sequence[dict[str, Any]], paragraphs: Sequence[str]
) -> Figure:
    """The figure: outputs, masks, and masks on the original, one column a budget.

    Args:
        original: (1, C, H, W) in [0, 1].
        outputs: (budgets, C, H, W) in [0, 1].
        masks: (budgets, 1, H, W) in [0, 1].
        outcomes: "budget" and "confidence" of each output.
        paragraphs: of the head.

    Raises:
        ImportError: Matplotlib is missing.
    """
    width = max(6.0, 1.75 * len(outputs))
    title = "Figure 2: DIP outputs and their MIG-SG saliency by iteration"
    figure, part = figures.panels(width, len(_ROWS) * width / len(outputs) + 1.3, title, paragraphs)
    grid = part.subplots(len(_ROWS), len(outputs), squeeze=False)
    overlaid = overlay(original.expand(len(masks), -1, -1, -1), masks)
    for column, outcome in enumerate(outcomes):
        above = f"{outcome['budget']} iterations\nconfidence {figures.shown(outcome['confidence'])}"
        figures.show(grid[0, column], outputs[column], title=above)
        figures.show(grid[1, column], masks[column])
        figures.show(grid[2, column], overlaid[column])
    for axes, name in zip(grid[:, 0], _ROWS, strict=True):
        axes.set_ylabel(name, fontsize=9)
    return figure


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """The paper's setting on a GPU, and one that takes minutes on a CPU.

    The figure warns of the latter.
    """
    if torch.device(given.device).type != "cpu":
        return {"config": "paper", "budgets": BUDGETS, "steps": 20, "samples": 10}
    return {"config": "compact", "budgets": (100, 200, 300, 400, 1000, 2000), "steps": 10, "samples": 5}
