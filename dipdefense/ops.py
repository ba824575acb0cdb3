"""The operators of N independent networks, each applied to all images at once.

Activations are ``(N, channels, height, width)`` and weights lead with the image axis too. Image *i* meets only the
weights with index *i*: the batch axis is folded into the channels and every convolution has N groups, so batch
normalisation's statistics, taken per channel over height and width, are those of one image alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def convolution(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """Convolve each image with its own kernels; 3×3 kernels pad by reflection, which keeps the size at stride 1.

    Args:
        x: (N, in_channels, height, width).
        weight: (N, out_channels, in_channels, k, k) with k = 1 or 3.
        stride: 1 or 2.

    Returns:
        (N, out_channels, ceil(height / stride), ceil(width / stride)).
    """
    count, out_channels, _, kernel, _ = weight.shape
    if kernel == 3:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    y = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), stride=stride, groups=count)
    return y.view(count, out_channels, *y.shape[2:])


def normalise(x: Tensor, scale: Tensor, shift: Tensor | None, *, eps: float) -> Tensor:
    """Batch normalisation in training mode of one image a network: statistics per image and channel.

    Args:
        x: (N, channels, height, width).
        scale: (N, channels).
        shift: (N, channels), or none.
        eps: added to the biased variance.
    """
    folded = x.reshape(1, -1, *x.shape[2:])
    shift = None if shift is None else shift.flatten()
    return F.batch_norm(folded, None, None, scale.flatten(), shift, training=True, eps=eps).view_as(x)


def activate(x: Tensor, *, slope: float) -> Tensor:
    """LeakyReLU, in place: normalisation's backward pass needs its input, never its output."""
    return F.leaky_relu_(x, slope)


def upsample(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear ×2 without aligned corners, cropped to ``(height, width)`` where the finer scale is odd."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
