"""Robust and non-robust images as Ilyas et al. 2019 construct them.

They serve where the released sets are not at hand. A robust image looks, to a robust network's penultimate layer, like
the image that it is made for, and begins as a random other one: it has the features of its class that this network
uses, and no others. A non-robust one is made by a standard network in the same way (their section 3.1, appendix C.5).
Both are conditions of a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipdefense.attacks import pgd_l2
from dipdefense.attacks.l2 import unit
from dipdefense.evaluation.protocol import Images, derive_seed
from dipdefense.evaluation.provenance import digest

STEPS, STEP = 1000, 0.1
"""Steps of the feature matching and their length in L2, as published."""

EPSILON, TARGET_STEPS = 0.5, 100
"""Radius and steps of the perturbation towards another class, as published; its steps have length ``STEP`` too."""


def penultimate(classifier: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function from images to the (N, features) input of the last linear layer.

    Raises:
        ValueError: the classifier has no linear layer.

    Example:
        >>> features = penultimate(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 10)))
        >>> features(torch.rand(2, 3, 2, 2)).shape
        torch.Size([2, 5])
    """
    linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"the penultimate layer is the input of the last nn.Linear, and {classifier} has none")

    def features(images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = linear[-1].register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            classifier(images)
        finally:
            hook.remove()
        return kept[-1].flatten(1)

    return features


def match_features(
    features: Callable[[Tensor], Tensor], targets: Tensor, starts: Tensor, *, steps: int = STEPS, step: float = STEP
) -> Tensor:
    """Images with the features of the targets, by normalised gradient descent.

    Args:
        features: from (N, C, H, W) images to (N, features), such as ``penultimate(classifier)``.
        targets: (N, C, H, W) in [0, 1].
        starts: (N, C, H, W) in [0, 1], where the descent begins.
        steps: how many.
        step: length of each in L2.

    Returns:
        (N, C, H, W) in [0, 1].
    """
    with torch.no_grad():
        wanted = features(targets)
    found = starts.detach()
    for _ in range(steps):
        with torch.enable_grad():
            found = found.detach().requires_grad_()
            # Summed, so that no image's gradient depends on another's.
            distance = (features(found) - wanted).norm(dim=1).sum()
            (gradient,) = torch.autograd.grad(distance, found)
        found = (found.detach() - step * unit(gradient)).clamp(0, 1)
    return found


@dataclass(frozen=True)
class FeaturesOf:
    """A condition: each image is replaced by another with its features to a network.

    The descent begins at a random other image, the same one for every network: two sets differ by the network alone.

    Attributes:
        network: robust, for a robust set; standard, for a non-robust one. In eval mode, on the images' device.
        others: data set of the images to begin at.
        seed: of the choice, which depends on it and on the image.
        steps: of the descent.
        step: length of each in L2.
    """

    network: nn.Module
    others: Images
    seed: int = 0
    steps: int = STEPS
    step: float = STEP

    def __call__(self, _classifier: nn.Module, images: Tensor, _labels: Tensor, *, batch_size: int, **_: Any) -> Tensor:
        """The images as the defence gets them; see ``evaluation.protocol.Condition``.

        Raises:
            ValueError: the data set has no image but these.
        """
        features = penultimate(self.network)
        made = []
        for part in torch.split(images, batch_size):
            starts = torch.stack([self._other(image) for image in part])
            made.append(match_features(features, part, starts, steps=self.steps, step=self.step))
        return torch.cat(made)

    def _other(self, image: Tensor) -> Tensor:
        """A random other image of the data set."""
        own = derive_seed(self.seed, "begin", digest([image.cpu().contiguous().numpy().tobytes()]))
        generator = torch.Generator().manual_seed(own)
        for index in torch.randperm(len(self.others.ids), generator=generator, device="cpu").tolist():
            other = self.others.stack([index]).images[0].to(image)
            if not torch.equal(other, image):
                return other
        raise ValueError("a set needs images to begin at, and there is none beside the image itself")


@dataclass(frozen=True)
class TowardsLabels:
    """A condition: each image is perturbed so that a network takes it for its label.

    The perturbation is small, and the label is not the true class. Of images with random labels these are
    ``drand_CIFAR``, whose only features of the label are non-robust.

    Attributes:
        network: standard, in eval mode, on the images' device.
        epsilon: radius of the L2 ball.
        steps: of the descent.
        step: length of each in L2.
    """

    network: nn.Module
    epsilon: float = EPSILON
    steps: int = TARGET_STEPS
    step: float = STEP

    def __call__(self, _classifier: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, **_: Any) -> Tensor:
        """The images as the defence gets them; see ``evaluation.protocol.Condition``."""
        parts = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
        return torch.cat([self._moved(*part) for part in parts])

    def _moved(self, images: Tensor, labels: Tensor) -> Tensor:
        return pgd_l2(
            self.network, images, labels, epsilon=self.epsilon, step=self.step, steps=self.steps, targeted=True
        )
