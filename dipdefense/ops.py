"""The operators of N independent networks, each applied to all images at once.

Activations are ``(N, channels, height, width)`` and weights lead with the image axis too. Image *i* meets only the
weights with index *i*: the batch axis is folded into the channels and every convolution has N groups, so batch
normalisation's statistics, taken per channel over height and width, are those of one image alone.

Operands are in the activations' dtype; scales, shifts and statistics stay in the parameters' (fp32 in use).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.upsampling import ConvolveOne, NormaliseUpsampled, convolve_batch

# A matrix product over patches beats a grouped convolution where the patches are short: CPU and GPU kernels for
# groups want 16 input channels or more.
_NARROW = 16


def convolution(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """Convolve each image with its own kernels; 3×3 kernels pad by reflection, which keeps the size at stride 1.

    Args:
        x: (N, in_channels, height, width).
        weight: (N, out_channels, in_channels, k, k) with k = 1 or 3.
        stride: 1 or 2; 1 for 1×1 kernels.

    Returns:
        (N, out_channels, ceil(height / stride), ceil(width / stride)).
    """
    count, out_channels, in_channels, kernel, _ = weight.shape
    size, weight = x.shape[2:], weight.to(x.dtype)
    if kernel == 3:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    if count > 1 and (kernel == 1 or in_channels < _NARROW):
        height, width = (-(-side // stride) for side in size)
        patches = x.flatten(2) if kernel == 1 else F.unfold(x, kernel, stride=stride)
        return torch.bmm(weight.flatten(2), patches).view(count, out_channels, height, width)
    return _unfold(F.conv2d(_fold(x), weight.flatten(0, 1), stride=stride, groups=count), count)


def normalise(x: Tensor, scale: Tensor, shift: Tensor | None, *, eps: float, slope: float | None = None) -> Tensor:
    """Batch normalisation in training mode of one image a network, then LeakyReLU where a slope is given.

    Args:
        x: (N, channels, height, width); statistics are per image and channel.
        scale: (N, channels).
        shift: (N, channels), or none.
        eps: added to the biased variance.
        slope: of the LeakyReLU for negative values, or none for no activation.
    """
    shift = None if shift is None else shift.flatten()
    y = F.batch_norm(_fold(x), None, None, scale.flatten(), shift, training=True, eps=eps)
    if slope is not None:
        # In place, since normalisation's backward pass needs its input and never its output; and before anything
        # makes a view of it: torch 2.15 on the CPU gets the gradient of an in-place change to a view wrong where the
        # channels are innermost.
        y = F.leaky_relu_(y, slope)
    return _unfold(y, len(x))


def normalise_upsampled(low: Tensor, scale: Tensor, *, height: int, width: int, eps: float) -> Tensor:
    """What ``normalise`` without a shift does to ``low`` upsampled, done to ``low`` itself, up to a constant.

    Upsampling is linear and keeps constants, so dividing the low-resolution tensor by the upsampled one's standard
    deviation does the same. The mean is left in: the caller's next normalisation removes it (a convolution that pads
    by reflection turns a constant per channel into a constant per channel).

    Args:
        low: (N, channels, ceil(height / 2), ceil(width / 2)).
        scale: (N, channels).
        height: of the upsampled tensor, after cropping.
        width: of the upsampled tensor, after cropping.
        eps: added to the biased variance.
    """
    return NormaliseUpsampled.apply(low, scale, height, width, eps)  # type: ignore[no-any-return]


def upsampled_convolution(low: Tensor, weight: Tensor, *, height: int, width: int) -> Tensor:
    """3×3 convolution, padding by reflection, of ``low`` upsampled bilinearly ×2 and cropped to (height, width).

    Args:
        low: (N, in_channels, ceil(height / 2), ceil(width / 2)), two rows and columns at least.
        weight: (N, in_channels, 3, out_channels, 3), horizontal taps before the outputs and vertical ones behind.
        height: of the result.
        width: of the result.
    """
    weight = weight.to(low.dtype)
    if len(low) > 1:
        return convolve_batch(low, weight, height, width)
    transposed = weight[0].permute(0, 2, 3, 1).flip(2, 3)
    return ConvolveOne.apply(low, transposed, height, width)  # type: ignore[no-any-return]


def _fold(x: Tensor) -> Tensor:
    """Images into channels: (N, C, H, W) to (1, N·C, H, W). One image stays as it is and keeps its memory format."""
    return x if len(x) == 1 else x.flatten(0, 1)[None]


def _unfold(x: Tensor, count: int) -> Tensor:
    """Channels back into images: (1, N·C, H, W) to (N, C, H, W)."""
    return x if count == 1 else x.view(count, -1, *x.shape[2:])
