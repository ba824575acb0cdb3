"""Tiny classifiers and defences for the tests of attackers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


def network() -> nn.Module:
    """Smooth (no gradient is zero), with modes that an attack could disturb."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, stride=2), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, CLASSES)),
        )
        with torch.no_grad():
            model[-1].weight.mul_(20)
    return model


def batch(count: int = 4, side: int = 15) -> tuple[Tensor, Tensor]:
    """Images partly black or white, where clipping matters, with `network`'s classes."""
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2))
    images[0, :, :4], images[1, :, :4] = 0.0, 1.0
    with torch.no_grad():
        return images, network().eval()(images).argmax(dim=1)


class Noise(nn.Module):
    """Gaussian noise from the default generator; counts its calls."""

    def __init__(self, std: float = 0.05) -> None:
        super().__init__()
        self.std, self.calls, self.seen = std, 0, list[float]()

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        noise = self.std * torch.randn(images.shape)
        self.seen.append(noise.sum().item())
        return images + noise


class Rounded(nn.Module):
    """A shattered gradient: zero almost everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * 8).round() / 8


class Steps(nn.Module):
    """A defence with a trajectory: noise that shrinks from budget to budget."""

    def __init__(self, iters: int = 6) -> None:
        super().__init__()
        self.iters, self.budgets = iters, list[Sequence[int]]()

    def reconstruct(self, images: Tensor, *, budgets: Sequence[int]) -> SimpleNamespace:
        self.budgets.append(budgets)
        noise = 0.1 * torch.randn(images.shape)
        return SimpleNamespace(images=torch.stack([images.square() + noise / budget for budget in budgets]))

    def forward(self, images: Tensor) -> Tensor:
        return self.reconstruct(images, budgets=(self.iters,)).images[0]


class Blur(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1).detach()
