# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""Epilogues: from a convolution's sums in accumulators to its values in memory.

In the forward pass the filtered result of the layer below is added, and normalisation's statistics are taken. In the
backward pass LeakyReLU's derivative is applied, and the two sums are taken that normalisation's gradient needs. Each
tile writes its own sums, which are then always added in the same order.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Partial(NamedTuple):
    """Each tile's statistics, (N, tiles, 2, channels), and the tiles' size in pixels."""

    sums: Tensor
    rows: int
    columns: int


class Finish(NamedTuple):
    """Inputs of the epilogue; everything is optional.

    Attributes:
        spread: (N, 2h + 3, 2w + 3, C), a transposed convolution's result, to be filtered and added.
        strip_rows: (N, 2, width, C) fp32, added to the first and last row with it.
        strip_columns: (N, 2, height, C) fp32, added to the first and last column.
        raw: (N, height, width, C), the raw values of the activation whose gradient the sums are.
        coefficients: (N, 4, C) fp32: that activation's a, b, mean and inverse deviation.
    """

    spread: Tensor | None = None
    strip_rows: Tensor | None = None
    strip_columns: Tensor | None = None
    raw: Tensor | None = None
    coefficients: Tensor | None = None


@triton.jit
def filter_tap(i):
    """Bilinear upsampling's filter on the zero-inserted tensor, [1 3 3 1]/4."""
    return tl.where((i == 0) | (i == 3), 0.25, 0.75)


@triton.jit
def add_filtered(sums, spread, strip_rows, strip_columns, image, row, column, n, mask, height, width, channels):
    """Add spread filtered with [1 3 3 1]/4 along both axes, and the border strips."""
    spread_h = (height + 1) // 2 * 2 + 3
    spread_w = (width + 1) // 2 * 2 + 3
    spread += image * spread_h * spread_w * channels
    # A loop at run time: unrolled, its sixteen loads would not fit in the registers beside the sums.
    for tap in range(16):
        i, j = tap // 4, tap % 4
        weight = filter_tap(i) * filter_tap(j)
        offsets = (((row + i) * spread_w + column + j) * channels)[:, None] + n[None, :]
        sums += weight * tl.load(spread + offsets, mask=mask, other=0.0).to(tl.float32)
    for end in tl.static_range(2):
        line = (image * 2 + end) * channels
        on_row = mask & (row == end * (height - 1))[:, None]
        sums += tl.load(strip_rows + line * width + (column * channels)[:, None] + n[None, :], mask=on_row, other=0.0)
        on_column = mask & (column == end * (width - 1))[:, None]
        sums += tl.load(
            strip_columns + line * height + (row * channels)[:, None] + n[None, :], mask=on_column, other=0.0
        )
    return sums


@triton.jit
def store_gradient_sums(
    sums, partial, raw, coef, image, tile, tiles, offsets, n, mask, channels, slope: tl.constexpr
):  # fmt: skip
    """Apply LeakyReLU's derivative; store the tile's two sums.

    They are the sums of the gradient and of the gradient times the normalised value.
    """
    inside = (n < channels)[None, :]
    coef += image * 4 * channels + n[None, :]
    z = tl.load(raw + offsets, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(coef, mask=inside, other=0.0)
    b = tl.load(coef + channels, mask=inside, other=0.0)
    mean = tl.load(coef + 2 * channels, mask=inside, other=0.0)
    inverse = tl.load(coef + 3 * channels, mask=inside, other=0.0)
    sums = tl.where(mask, tl.where(a * z + b > 0, sums, slope * sums), 0.0)
    partial += (image * tiles + tile) * 2 * channels + n
    tl.store(partial, tl.sum(sums, axis=0), mask=n < channels)
    tl.store(partial + channels, tl.sum(sums * (z - mean) * inverse, axis=0), mask=n < channels)
    return sums


@triton.jit
def store_moments(sums, partial, image, tile, tiles, n, mask, pixel, channels):
    """Store the tile's mean and sum of squared deviations from it.

    This loses no precision where the mean is large.
    """
    pixels = tl.sum(pixel.to(tl.float32), axis=0)
    mean = tl.sum(tl.where(mask, sums, 0.0), axis=0) / pixels
    deviation = tl.where(mask, sums - mean[None, :], 0.0)
    partial += (image * tiles + tile) * 2 * channels + n
    tl.store(partial, mean, mask=n < channels)
    tl.store(partial + channels, tl.sum(deviation * deviation, axis=0), mask=n < channels)
