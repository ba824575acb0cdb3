"""The arguments that every attack takes, checked before any gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dipdefense.arguments import real
from dipdefense.checks import check_images

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_attacked(classifier: object, images: Tensor, labels: Tensor) -> None:
    """Refuse anything but a classifier, a batch of images and one class an image.

    Raises:
        TypeError, ValueError: the message names the argument.
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
    check_images(images)
    kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
    if kind not in _INTEGERS:
        raise TypeError(f"labels must be a torch.Tensor of class numbers (integers), got {kind}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be one class an image, {tuple(images.shape[:1])}, got {tuple(labels.shape)}")


def check_labels_below(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no classes of the classifier; there is at least one.

    Raises:
        ValueError: the message has their range.
    """
    low, high = (bound.item() for bound in labels.aminmax())
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), the classes of the classifier, got labels from {low} to {high}"
        )


def check_epsilon(epsilon: object) -> None:
    """Refuse anything but an attack's strength in the ∞-norm.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not in [1, 255].
    """
    expected = "a number in [1, 255], in units of 1/255 (write 8, not 8/255)"
    real("epsilon", epsilon, expected=expected, holds=lambda value: 1 <= value <= 255)


def detached(images: Tensor) -> Tensor:
    """The images in float32, without history; rounding beyond [0, 1] is clipped."""
    return images.detach().float().clamp(0, 1)
