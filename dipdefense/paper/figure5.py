"""Figure 5 of the paper: the defence, from the attacked image to the classifier.

Network and noise are schematic; images and confidences are those of a real run.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dipdefense.config import PAPER_BUDGETS, DIPConfig
from dipdefense.evaluation import command_line
from dipdefense.evaluation.protocol import condition_title
from dipdefense.paper import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRUE, _OTHER, _NETWORK = "#0072B2", "#D55E00", "#56B4E9"
_ARROW: dict[str, Any] = {"arrowstyle": "-|>", "color": "black", "lw": 1.2}
_LIKELIEST = 4


def reproduce(*, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, reconstruct, classify, and write figure5.png and .json.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    groups = (partial(figures.add_example, attack="bi-10"), command_line.add_reconstruction)
    given = command_line.parse(command_line.parser(description, *groups), _defaults, arguments)
    with command_line.script(None):
        with command_line.usage():
            example = figures.open_example(given)
            config = figures.fitted(example, given)
            run = figures.reconstructed(example, config, given)
        told = figures.record(example, reconstruction=figures.reconstruction_record(example, config, given, run))
        paragraphs = [
            *figures.reduced(example, config, run.budgets, largest=PAPER_BUDGETS[-1]),
            f"{figures.described(example)} Network and noise are schematic; images and confidences are "
            "this run's. Blue: the true class.",
        ]
        outputs = dict(zip(run.budgets, run.images[:, 0], strict=True))
        figure = draw(example, outputs, config, paragraphs)
        figures.write(figure, told, folder=given.out, name="figure5")


def draw(
    example: figures.Example, outputs: Mapping[int, Tensor], config: DIPConfig, paragraphs: Sequence[str]
) -> Figure:
    """The figure: the image, the attacked one, network and noise, and the outputs.

    Below each image are the classifier's confidences.

    Args:
        example: the image and its attack.
        outputs: by budget, (C, H, W) in [0, 1].
        config: of the network, with its number of scales.
        paragraphs: of the head.

    Raises:
        ImportError: Matplotlib is missing.
    """
    titles = {0: "image", 1: f"attacked: {condition_title(example.condition)}"}
    titles |= {3 + place: f"output at {budget} iterations" for place, budget in enumerate(outputs)}
    pictures = torch.cat([example.clean, example.attacked, *(output[None] for output in outputs.values())])
    figure, part = figures.panels(
        2.3 * (3 + len(outputs)), 5.4, "Figure 5: the Deep Image Prior as a defence", paragraphs
    )
    grid = part.subplots(2, 3 + len(outputs), height_ratios=(1.35, 1))
    scores = example.scores(pictures)
    for (column, title), picture, confidences in zip(titles.items(), pictures, scores, strict=True):
        figures.show(grid[0, column], picture, title=title)
        _bars(grid[1, column], confidences, example)
    grid[1, 0].set_ylabel(f"confidences of\n{example.classifier.name}", fontsize=8)
    _network(grid[0, 2], config, image_channels=example.clean.shape[1])
    _noise(grid[1, 2], config, example)
    for column, text in enumerate(("attack", "target of the fit (MSE)", "early stop")):
        _arrow(grid[0, column], text)
    return figure


def _bars(axes: Axes, scores: Tensor, example: figures.Example) -> None:
    """The likeliest classes, and the true one if it is none of them."""
    classes = scores.topk(min(_LIKELIEST, len(scores))).indices.tolist()
    if example.label not in classes:
        classes[-1] = example.label
    for place, label in enumerate(classes):
        confidence = scores[label].item()
        axes.barh(-place, confidence, color=_TRUE if label == example.label else _OTHER, alpha=0.55)
        name = textwrap.shorten(example.category(label).replace("-", "- "), 22, placeholder=" …").replace("- ", "-")
        axes.text(0.02, -place, f"{name}  {figures.shown(confidence)}", fontsize=7.5, va="center")
    axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), yticks=())
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _network(axes: Axes, config: DIPConfig, *, image_channels: int) -> None:
    """The hourglass: a bar a scale on its way down and up, its skip branch between."""
    scales = config.scales or 0
    for scale in range(scales + 1):
        height = 0.9 * 0.68**scale
        for side in (-1, 1):
            axes.bar(side * (scales - scale), height, 0.5, bottom=-height / 2, color=_NETWORK)
        if scale < scales and config.skip_channels:
            reach, level = scales - scale - 0.3, height / 2.6
            skip = {"arrowstyle": "->", "color": "0.45", "lw": 0.7}
            axes.annotate("", xy=(reach, level), xytext=(-reach, level), arrowprops=skip)
    count = config.parameter_count(image_channels=image_channels, scales=scales)
    axes.set(xlim=(-scales - 0.6, scales + 0.6), ylim=(-0.65, 0.5), xticks=(), yticks=())
    axes.set_title("an untrained network for this image", fontsize=9)
    axes.text(
        0.5, 0.02, f"{scales} scales, {config.channels} channels,\n{count:,} parameters; Adam", fontsize=8, ha="center",
        va="bottom", transform=axes.transAxes,
    )  # fmt: skip
    axes.set_axis_off()


def _noise(axes: Axes, config: DIPConfig, example: figures.Example) -> None:
    """Three of the input's channels, with other random numbers than the run's."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, *example.clean.shape[2:])
    fixed = config.input_scale * torch.rand(shape, generator=generator, device="cpu")
    noise = fixed + config.noise_std * torch.randn(shape, generator=generator, device="cpu")
    low, high = noise.aminmax()
    figures.show(
        axes,
        (noise - low) / (high - low),
        f"{config.input_channels} channels of noise:\nU(0, {config.input_scale:g}) fixed, plus\n"
        f"N(0, {config.noise_std:.3f}²) at each iteration",
    )
    axes.annotate(
        "", xy=(0.5, 1.16), xytext=(0.5, 1.01), xycoords="axes fraction", annotation_clip=False, arrowprops=_ARROW
    ).set_in_layout(False)


def _arrow(axes: Axes, text: str) -> None:
    """An arrow to the next column, with a word below the picture."""
    axes.annotate(
        "", xy=(1.1, 0.5), xytext=(1.0, 0.5), xycoords="axes fraction", annotation_clip=False, arrowprops=_ARROW
    ).set_in_layout(False)
    axes.text(1.0, -0.03, f"{text} →", fontsize=8, ha="right", va="top", transform=axes.transAxes)


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """The paper's setting on a GPU, and one that takes a minute on a CPU.

    The figure warns of the latter.
    """
    if torch.device(given.device).type != "cpu":
        return {"config": "paper", "budgets": PAPER_BUDGETS}
    return {"config": "compact", "budgets": (200, 400, 800)}
