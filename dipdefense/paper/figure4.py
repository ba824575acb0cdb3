"""Figure 4 of the paper: one image's saliency by every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from dipdefense.evaluation import command_line
from dipdefense.paper import figures
from dipdefense.saliency import gradient, integrated_gradients, mask, mig_sg, smoothgrad

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOISE_STD, _PERCENTILE = 0.15, 99.0


def reproduce(*, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, make the maps, and write figure4.png and figure4.json.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    parser = command_line.parser(description, partial(figures.add_example, attack="clean"))
    add = parser.add_argument
    add("--steps", type=command_line.count, default=20, help="of the integrations (default: %(default)s)")
    add("--samples", type=command_line.count, default=10, help="of the noise, at each step (default: %(default)s)")
    given = command_line.parse(parser, lambda _: {}, arguments)
    with command_line.script(None):
        with command_line.usage():
            example = figures.open_example(given)
        steps = {"steps": given.steps}
        noise = {"samples": given.samples, "noise_std": _NOISE_STD}
        # As many gradients as MIG-SG has: of ten noisy copies alone, SmoothGrad is noise.
        smooth = noise | {"samples": given.steps * given.samples}
        settings = {"gradient": {}, "integrated gradients": steps, "SmoothGrad": smooth, "MIG-SG": steps | noise}
        of_all = {"target": example.label, "batch_size": 8}
        classifier, image, seed = example.classifier, example.attacked, example.seed
        maps = {
            "gradient": gradient(classifier, image, **of_all),
            "integrated gradients": integrated_gradients(classifier, image, **of_all, **steps),
            "SmoothGrad": smoothgrad(classifier, image, seed=seed, **of_all, **smooth),
            "MIG-SG": mig_sg(classifier, image, seed=seed, **of_all, **steps, **noise),
        }
        told = figures.record(example, saliency={"baseline": "black", "percentile": _PERCENTILE, "methods": settings})
        about = (
            f"{figures.described(example)} Maps of the true class's score, whose confidence is "
            f"{figures.shown(told['undefended']['attacked']['confidence'])}: absolute values, clipped at the "
            f"{_PERCENTILE:g}th percentile. Steps {given.steps}, samples {given.samples} (SmoothGrad "
            f"{smooth['samples']}), σ = {_NOISE_STD}, black baseline."
        )
        figure = draw(image, {name: mask(each, _PERCENTILE) for name, each in maps.items()}, [about])
        figures.write(figure, told, folder=given.out, name="figure4")


def draw(image: Tensor, masks: Mapping[str, Tensor], paragraphs: Sequence[str]) -> Figure:
    """The figure: the image, then the mask of each method with its name under it.

    Args:
        image: (1, C, H, W) in [0, 1].
        masks: by method, (1, 1, H, W) in [0, 1].
        paragraphs: of the head.

    Raises:
        ImportError: Matplotlib is missing.
    """
    count = 1 + len(masks)
    figure, part = figures.panels(2.3 * count, 3.4, "Figure 4: saliency maps of one image", paragraphs)
    first, *others = part.subplots(1, count)
    figures.show(first, image[0], "(a) image")
    for letter, axes, (name, each) in zip("bcdefgh", others, masks.items(), strict=False):
        figures.show(axes, each[0], f"({letter}) {name}")
    return figure
