"""Whether a tensor is a batch of images: its type, shape and range.

The messages give advice on the usual slips.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-4
"""How far a value may lie outside [0, 1]: as far as rounding moves it when images are normalised and denormalised."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(images: object) -> None:
    """Refuse anything but a dense tensor of floats that holds data.

    Its shape is not checked.

    Raises:
        TypeError: it is something else; the message says how to convert it.
    """
    if not isinstance(images, Tensor):
        kind = type(images)
        if kind.__module__.startswith("PIL."):
            advice = "; convert it with dipdefense.classifiers.to_tensor(image)[None]"
        elif kind.__module__.startswith("numpy"):
            advice = "; convert it with torch.from_numpy(images)"
        elif isinstance(images, str | os.PathLike):
            advice = "; open the file with PIL.Image.open and convert it with dipdefense.classifiers.to_tensor"
        elif isinstance(images, list | tuple):
            advice = "; stack images of one size with torch.stack(images)"
        else:
            advice = ""
        raise TypeError(f"images must be a torch.Tensor, got {kind.__name__}{advice}")
    if images.is_nested:
        raise TypeError("images must be a dense tensor, got a nested one; call once for every size of image")
    if images.is_quantized:
        raise TypeError(f"images must be floating point in [0, 1], got {images.dtype}; use images.dequantize()")
    if images.layout != torch.strided:
        raise TypeError(f"images must be a dense tensor, got one of layout {images.layout}; use images.to_dense()")
    if images.device.type == "meta":
        raise TypeError("images must hold values, got a tensor on the device meta, which holds none")
    if images.dtype not in _DTYPES:
        if images.dtype == torch.uint8:
            advice = "; divide uint8 images by 255"
        elif images.dtype == torch.uint16:
            advice = "; divide uint16 images by 65535, as images.float() / 65535"
        elif images.is_floating_point():
            advice = "; use images.float()"
        else:
            advice = ""
        raise TypeError(f"images must be floating point in [0, 1], got {images.dtype}{advice}")


def check_shape(given: Sequence[int]) -> None:
    """Refuse any shape but (batch, channels, height, width).

    The batch may be empty, the images may not.

    Raises:
        ValueError: it is another shape; where it looks like another layout, the message says how to permute the axes.
    """
    shape = tuple(given)
    expected = f"images must have shape (batch, channels, height, width), got {shape}"
    channels_last = len(shape) in (3, 4) and shape[-1] in (1, 3, 4) and shape[-3] > 4
    if len(shape) == 3:
        moved = ".permute(2, 0, 1)" if channels_last else ""
        raise ValueError(f"{expected}; add a batch axis with images{moved}[None]")
    if len(shape) != 4:
        raise ValueError(expected)
    if channels_last:
        raise ValueError(
            f"{expected}, which looks like (batch, height, width, channels); use images.permute(0, 3, 1, 2)"
        )
    if 0 in shape[1:]:
        raise ValueError(f"images must have at least one channel and one pixel, got shape {shape}")


def scale_advice(low: float, high: float) -> str:
    """How to bring values from ``low`` to ``high`` into [0, 1].

    The advice depends on the scale that they seem to have.
    """
    if low >= -ROUNDING and high > 2.9:
        if high <= 255:
            return "uint8 values? divide by 255 first"
        if high <= 65535:
            return "values of 16 bits? divide the original ones by 65535, not by 255"
    clip = 'clip them with images.clamp(0, 1), or let the defence do it with out_of_range="clip"'
    if low < -0.2 and max(-low, high) < 4:
        return f"already normalised? undo mean and std first; otherwise {clip}"
    return clip


def clipped(images: Tensor, low: float, high: float) -> Tensor:
    """The images clipped to [0, 1], with the identity as gradient.

    An attack can thus bring a clipped pixel back. A warning asks about the scale where most values lie outside by more
    than half the range: no attack goes that far.

    Args:
        images: (N, C, H, W), finite.
        low: their least value.
        high: their greatest value.
    """
    values = images.detach()
    if (low < -0.5 or high > 1.5) and ((values < -0.5) | (values > 1.5)).float().mean() > 0.5:
        warnings.warn(
            f"most of the images' values lie far outside [0, 1] and are clipped: they go from {low:.4g} to "
            f"{high:.4g}. Are they on the scale that the defence was told?",
            UserWarning,
            stacklevel=2,
        )
    # The sum with the clipped values would round; this one is exact.
    return values.clamp(0, 1) + (images - values)
