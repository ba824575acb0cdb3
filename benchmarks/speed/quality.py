"""Quality beside speed: loss curves, PSNR and a classifier's decisions.

Each loop is compared with the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.reconstruct import Reconstruction
from speed.check import Contender
from speed.contenders import published_loop

_POINTS = 20
Loop = Callable[..., Reconstruction]


def loops(everyone: Mapping[str, Contender]) -> dict[str, tuple[Loop, int]]:
    """The loops to compare and their seeds, by name.

    The others are compared with the first. The second is the first with another seed and serves as the yardstick,
    because no two loops have the same random numbers.
    """
    own = {name: found.fit for name, found in everyone.items() if name.startswith("dipdefense")}
    named: dict[str, tuple[Any, int]] = {"published loop": (published_loop, 0)}
    named["published loop, another seed"] = (published_loop, 1)
    return named | {name: (fit, 2) for name, fit in own.items()}


def compare(
    images: Tensor,
    labels: Tensor,
    classify: Callable[[Tensor], Tensor],
    compared: Mapping[str, tuple[Loop, int]],
    *,
    config: DIPConfig,
    budgets: Sequence[int],
    expendable: Collection[str] = (),
    report: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Fit the same images with every loop, and compare the results.

    Args:
        images: (N, C, H, W) in [0, 1].
        labels: (N,) class indices.
        classify: from images to (N, classes) logits.
        compared: as ``loops`` returns them.
        config: the network.
        budgets: iterations, ascending.
        expendable: loops that may fail; their row then has only the reason, as ``failed``.
        report: called after each loop with the results so far.

    Returns:
        ``budgets``, ``labels``, and by loop in ``loops``: ``psnr`` in dB, ``predictions`` and the true class's
        ``confidences`` (budgets × images); ``log_loss``, the mean natural logarithm of the loss over all images in up
        to 20 equal parts of the iterations; and relative to the first loop ``psnr_difference`` (mean over the images,
        by budget), ``log_loss_difference`` (mean absolute difference over images and parts) and ``same_decisions``
        (number of images, by budget).
    """
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"budgets": list(budgets), "labels": labels.tolist(), "loops": rows}
    curves: dict[str, Tensor] = {}
    base = next(iter(compared))
    for name, (fit, seed) in compared.items():
        torch.manual_seed(seed)
        try:
            run = fit(images, budgets=tuple(budgets), config=config)
        except Exception as error:
            if name not in expendable:
                raise
            rows[name] = {"failed": f"{type(error).__name__}: {error}"}
            continue
        with torch.no_grad():
            scores = torch.stack([classify(output) for output in run.images]).softmax(dim=2)
        confidences = scores.gather(2, labels.view(1, -1, 1).expand(len(budgets), -1, -1))[..., 0]
        curves[name] = torch.stack([part.log().mean(dim=0) for part in run.losses.tensor_split(_POINTS) if len(part)])
        row = rows[name] = {
            "psnr": psnr(run.images, images).tolist(),
            "predictions": scores.argmax(dim=2).tolist(),
            "confidences": confidences.tolist(),
            "log_loss": curves[name].mean(dim=1).tolist(),
        }
        own, other = (torch.tensor(entry["psnr"]) for entry in (row, rows[base]))
        row["psnr_difference"] = (own - other).mean(dim=1).tolist()
        row["log_loss_difference"] = (curves[name] - curves[base]).abs().mean().item()
        own, other = (torch.tensor(entry["predictions"]) for entry in (row, rows[base]))
        row["same_decisions"] = (own == other).sum(dim=1).tolist()
        report(found)
    return found


def psnr(outputs: Tensor, images: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of outputs in dB, (…, N).

    The outputs are (…, N, C, H, W) and the images (N, C, H, W) in [0, 1].
    """
    return -10 * (outputs.double() - images).square().mean(dim=(-3, -2, -1)).log10()


def on_packaged_images(
    everyone: Mapping[str, Contender],
    device: torch.device,
    *,
    count: int,
    config: DIPConfig,
    budgets: Sequence[int],
    report: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """The comparison on packaged ImageNet images at 224×224.

    EfficientNet-Lite0 classifies them.

    Raises:
        ImportError: the packages with the images or the weights are not installed.
    """
    from dipdefense.classifiers import load
    from dipdefense.datasets import packaged_images

    classifier = load("efficientnet-lite0", device=device)
    packaged = packaged_images("imagenet", preprocess=classifier.preprocess)
    images, labels = packaged.images[:count].to(device), packaged.labels[:count].to(device)
    head = {"classifier": classifier.name, "images": list(packaged.ids[:count])}
    return head | compare(
        images, labels, functools.partial(classifier), loops(everyone), config=config, budgets=budgets,
        expendable={name for name, contender in everyone.items() if contender.expendable},
        report=lambda found: report(head | found),
    )  # fmt: skip
