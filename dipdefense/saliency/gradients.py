"""Sums of a class score's gradients at several points of each image.

The classifier gets a batch of points at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from dipdefense.arguments import integer, several, shown
from dipdefense.checks import check_images, check_logits
from dipdefense.modes import evaluated

Target = int | Sequence[int] | Tensor | None
"""A class for all images, one per image, or None for the predicted ones."""

MOST = 2**24
"""The most steps, samples or images at once; a larger number is a slip, which no computation would finish."""

Points = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""From an image and its baseline, both (C, H, W), to the points at which its gradients are taken."""


def summed(
    classifier: nn.Module,
    images: Tensor,
    target: Target,
    batch_size: int,
    points: Points,
    baselines: Tensor | None = None,
    *,
    absolute: bool = False,
) -> Tensor:
    """The sum of the (absolute) gradients at each image's points: (N, C, H, W).

    It is in float32 at least.
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {shown(classifier)}")
    check_images(images)
    batch_size = integer("batch_size", batch_size, low=1, high=MOST)
    images, classes = images.detach(), _classes(target, len(images))
    baselines = torch.zeros_like(images) if baselines is None else baselines
    # Thousands of gradients in bf16 would not add up, and in float16 their sum may be infinite.
    exact = torch.promote_types(images.dtype, torch.float32)
    if len(images) == 0:
        return torch.zeros_like(images, dtype=exact)
    with evaluated(classifier):
        targets = _targets(classifier, images, classes, batch_size)
        sums = torch.zeros_like(images, dtype=exact)
        pairs = enumerate(zip(images, baselines, strict=True))
        numbered = ((number, point) for number, (image, origin) in pairs for point in points(image, origin))
        while chunk := list(islice(numbered, batch_size)):
            numbers, stacked = zip(*chunk, strict=True)
            owners = torch.tensor(numbers, device=images.device)
            gradients = _gradients(classifier, torch.stack(stacked), targets[owners])
            sums.index_add_(0, owners, (gradients.abs() if absolute else gradients).to(sums.dtype))
    return sums


def _gradients(classifier: nn.Module, points: Tensor, targets: Tensor) -> Tensor:
    """Each point's gradient of the score of its class."""
    points.requires_grad_()
    logits = check_logits(classifier(points), len(points))
    # An image's score depends on no other image, so the sum's gradient is each one's own.
    score = logits.gather(1, targets[:, None]).sum()
    found = torch.autograd.grad(score, points, allow_unused=True)[0] if score.requires_grad else None
    if found is None:
        raise ValueError(
            "classifier must be differentiable with respect to the images, but its logits have no gradient; it must "
            "neither detach them nor run under torch.no_grad()"
        )
    return found


def _classes(target: Target, count: int) -> list[int] | None:
    """The given classes, one per image; None for the predicted ones."""
    if target is None:
        return None
    expected = "a class number, one per image, or None for the predicted classes"
    if isinstance(target, int) or getattr(target, "ndim", None) == 0:
        return [integer("target", target, low=0, expected=expected)] * count
    given = several("target", target, expected=expected, most=MOST)
    if len(given) != count:
        raise ValueError(f"target must be one class or one per image, got {len(given)} classes for {count} images")
    return [integer("target", each, low=0, expected=expected) for each in given]


def _targets(classifier: nn.Module, images: Tensor, classes: list[int] | None, batch_size: int) -> Tensor:
    """(N,) classes on the images' device: the predicted ones, or the given ones.

    Raises:
        ValueError: the classifier does not have one of the given classes.
    """
    with torch.no_grad():
        if classes is None:
            parts = [
                check_logits(classifier(part), len(part)).argmax(dim=1) for part in torch.split(images, batch_size)
            ]
            return torch.cat(parts)
        known = check_logits(classifier(images[:1]), 1).shape[1]
    if max(classes) >= known:
        raise ValueError(f"target must lie in [0, {known}), the classes of the classifier, got {max(classes)}")
    return torch.tensor(classes, device=images.device)
