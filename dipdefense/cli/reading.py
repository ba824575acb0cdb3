"""Batches of image files, preprocessed for a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dipdefense import classifiers
from dipdefense.classifiers import Classifier, to_tensor
from dipdefense.cli import ending
from dipdefense.cli.listing import Item
from dipdefense.cli.summary import Summary
from dipdefense.files import UnreadableImage, open_rgb, read_bytes


def load(name: str, weights: object, device: torch.device) -> Classifier:
    """A classifier by its name on the command line.

    Raises:
        TypeError, ValueError, OSError, ImportError: as ``classifiers.load`` raises them.
    """
    return classifiers.load(name, weights=None if weights is None else str(weights), device=device)


def batches(
    items: Sequence[Item], classifier: Classifier, summary: Summary, *, size: int, device: torch.device
) -> Iterator[tuple[list[Item], Tensor]]:
    """Batches of the readable images, (N, 3, H, W) in [0, 1].

    ``summary`` gets the others as failed. Images are resized and cropped for the classifier, except those that already
    have its size.
    """
    for start in range(0, len(items), size):
        ending.check()
        readable, images = [], []
        for item in items[start : start + size]:
            try:
                picture = open_rgb(read_bytes(item.path), name=item.name)
                fits = picture.size == (classifier.preprocess.crop, classifier.preprocess.crop)
                # Resized and cropped again, the output of ``attack`` would lose its edges and its perturbation.
                images.append(to_tensor(picture) if fits else classifier.preprocess(picture))
                readable.append(item)
            except UnreadableImage as error:
                summary.fail(item.name, error.reason)
        if readable:
            yield readable, torch.stack(images).to(device)


def class_name(classifier: Classifier, index: int) -> str:
    """The name of a class, or its index where the classifier has no names."""
    return classifier.categories[index] if index < len(classifier.categories) else str(index)
