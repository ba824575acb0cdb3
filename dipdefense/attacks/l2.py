"""Projected gradient descent in the L2 norm.

Ilyas et al. 2019 train robust networks and make their data sets with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pgd_l2(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images within an L2 ball around each image (Madry et al. 2018).

    The attack is defence-unaware. The classifier stays in its mode: a network in training is attacked as it is trained.
    Its parameters get no gradients.

    Args:
        classifier: from (N, C, H, W) in [0, 1] to (N, classes) logits.
        images: (N, C, H, W) floats in [0, 1].
        labels: (N,) integers: the true classes or, ``targeted``, those to be predicted.
        epsilon: radius of the ball, on the scale of [0, 1] images: CIFAR-10's customary 0.5, not 128.
        step: length of a step along the normalised gradient.
        steps: how many.
        targeted: whether the loss of the labels is descended instead of ascended.
        generator: on the CPU, of a random point in the ball to begin at; None begins at the image.

    Returns:
        (N, C, H, W) in [0, 1].

    Raises:
        ValueError: epsilon or step is not positive, or steps is below 1.

    Example:
        >>> images, classifier = torch.rand(2, 3, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        >>> found = pgd_l2(classifier, images, torch.tensor([3, 4]), epsilon=0.5, step=0.1, steps=7)
        >>> bool(((found - images).flatten(1).norm(dim=1) <= 0.5 + 1e-4).all())
        True
    """
    if not (epsilon > 0 and step > 0 and steps >= 1):
        raise ValueError(
            f"epsilon and step must be positive and steps at least 1, got epsilon={epsilon}, step={step}, steps={steps}"
        )
    signed = -step if targeted else step
    # Gradients are taken whatever surrounds the call. Copies, since none flows through tensors of inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        images, labels = images.detach().clone(), labels.clone()
        moved = images
        if generator is not None:
            noise = torch.randn(images.shape, generator=generator, device="cpu").to(images)
            lengths = torch.rand(len(images), generator=generator, device="cpu").to(images)
            # A uniform point of so many dimensions lies near the ball's surface; a uniform length reaches inside.
            moved = _within(images, images + epsilon * _each(lengths) * unit(noise), epsilon)
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            loss = F.cross_entropy(classifier(moved).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = _within(images, moved.detach() + signed * unit(gradient), epsilon)
    return moved


def unit(vectors: Tensor) -> Tensor:
    """Each image of a batch (N, C, H, W) brought to L2 norm 1; zero stays zero.

    Its values may be as small or as large as float32 allows.

    Example:
        >>> unit(torch.full((1, 1, 2, 2), 1e-30)).norm()
        tensor(1.)
    """
    # Its squares alone would be zero or infinite in float32.
    scaled = vectors / vectors.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
    return scaled / scaled.square().sum(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)


def _within(images: Tensor, moved: Tensor, epsilon: float) -> Tensor:
    """The nearest points in the balls, clipped to [0, 1].

    Clipping moves no point away from an image in that range.
    """
    return (images + (moved - images).renorm(2, 0, epsilon)).clamp(0, 1)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
