"""The points at which gradients are taken: noisy copies and a path's baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from dipdefense.arguments import integer, real
from dipdefense.checks import check_images
from dipdefense.saliency.gradients import MOST


def noisy(points: Iterable[Tensor], noise_std: float, seed: int) -> Iterator[Tensor]:
    """The points with Gaussian noise.

    A point's noise depends on the seed and on its place in the sequence alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for point in points:
        # On the CPU in float32, so that a seed means the same on every device and in every dtype.
        noise = torch.randn(point.shape, generator=generator, dtype=torch.float32, device="cpu")
        yield point + noise_std * noise.to(point)


def checked_noise(samples: int, noise_std: float, seed: int) -> tuple[int, float, int]:
    """A random method's checked arguments: samples, standard deviation and seed."""
    expected = "zero or a positive number, in units of the range [0, 1]"
    return (
        integer("samples", samples, low=1, high=MOST),
        real("noise_std", noise_std, expected=expected, holds=lambda x: x >= 0),
        integer("seed", seed, low=0, high=2**63 - 1, expected="an integer in [0, 2**63)"),
    )


def baselines(baseline: Tensor | float, images: Tensor) -> Tensor:
    """The baseline of each image: (N, C, H, W)."""
    check_images(images)
    if not isinstance(baseline, Tensor):
        expected = "a grey level in [0, 1], or a tensor that broadcasts to the images"
        level = real("baseline", baseline, expected=expected, holds=lambda x: 0 <= x <= 1)
        return torch.full_like(images.detach(), level)
    if not (baseline.is_floating_point() and baseline.isfinite().all()):
        raise ValueError("baseline must be a tensor of finite floats on the images' scale, [0, 1]")
    try:
        return baseline.detach().to(images).broadcast_to(images.shape)
    except RuntimeError:
        raise ValueError(
            f"baseline must broadcast to the images, {tuple(images.shape)}, as (channels, height, width) does; got "
            f"{tuple(baseline.shape)}"
        ) from None
