"""Images reduced to the size of the fit, and outputs enlarged to the images' own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def reduced(images: Tensor, size: Sequence[int]) -> Tensor:
    """The area average of images at a smaller size, in float32 at least.

    Args:
        images: (..., C, H, W) floats.
        size: height and width in pixels, at most the images' own.
    """
    return _resized(images, size, mode="area")


def enlarged(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images at a larger size by bicubic interpolation (Keys 1981, a = −0.5).

    They are clipped to [0, 1], and in float32 at least.

    Args:
        images: (..., C, H, W) floats in [0, 1]; NaN stays.
        size: height and width in pixels.
    """
    # Without antialias=True torch has a = −0.75; an enlargement has no aliases.
    return _resized(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def _resized(images: Tensor, size: Sequence[int], *, mode: str, antialias: bool = False) -> Tensor:
    *leading, channels, height, width = images.shape
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    batch = exact.reshape(-1, channels, height, width)
    return interpolate(batch, size=list(size), mode=mode, antialias=antialias).reshape(*leading, channels, *size)
