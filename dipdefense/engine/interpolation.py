"""Bilinear upsampling ×2 as matrices, and the border of a convolution after it.

The fast forms of the upsampled convolution pad by replication, the network by reflection. The two differ on a ring one
pixel wide, so only the outermost rows and columns of the result need a correction, the kernels' outer taps applied to
that difference. Per axis write R for the reflecting extension and P for the replicating one; then

    R⊗R − P⊗P = (R − P)⊗R + P⊗(R − P),

a strip along the top and bottom, extended by reflection, and one along the sides, extended by replication. A strip
depends on the two outermost lines at either end of the low-resolution tensor alone: their step is multiplied by the
taps, and one fixed matrix upsamples the products, extends them, shifts each tap's to its place and adds them up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.engine.constants import constant


@constant
def upsampling_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear upsampling ×2 along one axis: (size, ceil(size / 2)).

    Corners are not aligned, and the result is cropped to ``size``.
    """
    unit = torch.eye(-(-size // 2), dtype=dtype, device=device)
    return F.interpolate(unit[None], scale_factor=2, mode="linear", align_corners=False)[0].T[:size]


class Strips(NamedTuple):
    """A pair of strips, above and below or left and right.

    Attributes:
        values: (N, 2, L, out), to be added along either border.
        steps: (N, 2, l, in), the taps' factors.
        taps: (N, 2, in, 3, out).
        stepping: (2, 4), from the outermost lines to ``steps``.
        spreading: (L, 3 l), from the products to ``values``.
    """

    values: Tensor
    steps: Tensor
    taps: Tensor
    stepping: Tensor
    spreading: Tensor


def strips(lines: Tensor, taps: Tensor, across: int, along: int, *, reflect: bool) -> Strips:
    """Reflection minus replication along two opposite borders of the result.

    Args:
        lines: (N, 4, l, in), the low-resolution tensor's lines 0, 1, −2 and −1 along the borders.
        taps: (N, 2, in, 3, out), the kernels' taps that reach over either border, mirrored along the strip as a
            transposed convolution has them. The products are in their dtype.
        across: pixels of the result across the strips.
        along: pixels of the result along the strips, L.
        reflect: whether the strips' own ends are extended by reflection, as of the first pair of the two; otherwise by
            replication.
    """
    stepping = _stepping(across % 2 == 1, lines.dtype, lines.device)
    spreading = _spreading(along, reflect, taps.dtype, taps.device)
    steps = (stepping @ lines.flatten(2)).view(len(lines), 2, *lines.shape[2:]).to(taps.dtype)
    products = (steps @ taps.flatten(3)).view(len(lines), 2, -1, taps.shape[4])
    return Strips(spreading @ products, steps, taps, stepping, spreading)


def strip_gradients(pair: Strips, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of lines and taps, from that of ``pair.values``.

    Returns:
        (N, 4, l, in) and (N, 2, in, 3, out).
    """
    count, _, length, inputs = pair.steps.shape
    products = (pair.spreading.T @ grad.to(pair.taps.dtype)).view(count, 2, length, -1)
    grad_steps = (products @ pair.taps.flatten(3).mT).to(pair.stepping.dtype)
    grad_lines = (pair.stepping.T @ grad_steps.flatten(2)).view(count, 4, length, inputs)
    return grad_lines, (pair.steps.mT @ products).view(pair.taps.shape)


@constant
def _stepping(crops: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Reflection minus replication one pixel beyond either end.

    The columns are for the lines 0, 1, −2 and −1.

    Upsampled pixel 1 is (3 a + b)/4 of the outermost lines a and b, and replication repeats a. At the far end the same
    holds for an even size; an odd one is cropped by a pixel, so that reflection finds (a + 3 b)/4 there.
    """
    far = 0.75 if crops else 0.25
    return torch.tensor([[-0.25, 0.25, 0, 0], [0, 0, far, -far]], dtype=dtype, device=device)


@constant
def _spreading(size: int, reflect: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Upsampling as each mirrored tap sees it: (size, 3 · ceil(size / 2)).

    A low-resolution pixel's three taps are beside each other.
    """
    reach = torch.arange(size, device=device)[:, None] + torch.arange(1, -2, -1, device=device)
    last = size - 1
    if reflect:
        upsampled, reach = upsampling_matrix(size, dtype, device), last - (last - reach.abs()).abs()
    else:
        # An odd size is cropped after the extension.
        upsampled = upsampling_matrix(size + size % 2, dtype, device)
        reach = reach.clamp(0, len(upsampled) - 1)
    return upsampled[reach].transpose(1, 2).reshape(size, -1)
