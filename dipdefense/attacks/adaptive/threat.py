"""The threat model, and the ball of images that it allows around each clean one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dipdefense.arguments import choice, real
from dipdefense.attacks.checking import check_epsilon
from dipdefense.attacks.l2 import unit

Norm = Literal["Linf", "L2"]

# A perturbation of length zero is not divided by it.
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Threat:
    """The bound on an attacker's perturbation of each image.

    Attributes:
        epsilon: the largest perturbation of an image. For "Linf" in units of 1/255, from 1 to 255; for "L2" the norm
            itself, of images in [0, 1].
        norm: "Linf" or "L2".

    Raises:
        TypeError, ValueError: there is no such norm, or ε is outside its range.

    Example:
        >>> Threat(epsilon=8).radius == 8 / 255, Threat(epsilon=0.5, norm="L2").radius
        (True, 0.5)
    """

    epsilon: float
    norm: Norm = "Linf"

    def __post_init__(self) -> None:
        """Refuse a threat that no attack could pose."""
        choice("norm", self.norm, get_args(Norm))
        if self.norm == "Linf":
            check_epsilon(self.epsilon)
        else:
            real("epsilon", self.epsilon, expected="a positive number, the L2 norm", holds=lambda x: x > 0)

    @property
    def radius(self) -> float:
        """ε on the scale of images in [0, 1]."""
        return self.epsilon / 255 if self.norm == "Linf" else self.epsilon


@dataclass(frozen=True)
class Ball:
    """The images that a threat allows: within ε of the clean ones, and in [0, 1].

    Attributes:
        clean: (N, C, H, W) in [0, 1].
        threat: the norm and its bound.
    """

    clean: Tensor
    threat: Threat

    def project(self, images: Tensor) -> Tensor:
        """The images brought into the ball.

        For "L2" the perturbation is shortened and the image then clipped, which keeps both bounds.
        """
        radius, change = self.threat.radius, images - self.clean
        if self.threat.norm == "Linf":
            change = change.clamp(-radius, radius)
        else:
            change = change * (radius / _norm(change).clamp(min=_TINY)).clamp(max=1)
        return (self.clean + change).clamp(0, 1)

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of unit norm that increases a loss of this gradient most."""
        return gradient.sign() if self.threat.norm == "Linf" else unit(gradient)

    def start(self, generator: torch.Generator) -> Tensor:
        """Random images on the ball's surface, as APGD starts (Croce & Hein 2020).

        The generator is on the CPU.
        """
        shape = self.clean.shape
        if self.threat.norm == "Linf":
            noise = torch.rand(shape, generator=generator, device="cpu") * 2 - 1
            noise = noise / noise.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=_TINY)
        else:
            noise = unit(torch.randn(shape, generator=generator, device="cpu"))
        return self.project(self.clean + self.threat.radius * noise.to(self.clean.device))


def _norm(images: Tensor) -> Tensor:
    return images.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
