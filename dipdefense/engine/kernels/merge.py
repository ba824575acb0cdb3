# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""The merged normalisation: activations' moments, and the gradient through them.

An activation is merged as it is (PLAIN) or upsampled (UPSAMPLED).

The upsampled tensor is A L Bᵀ of the low-resolution one, so its sum of squares is ⟨L, G_A L G_B⟩ with the Gram matrices
G = AᵀA, which are filters of three taps: the upsampled tensor itself is never made.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipdefense.engine.kernels.epilogues import Partial, store_gradient_sums
from dipdefense.engine.kernels.tiles import REPEAT, SIZES, Operand, beyond

PLAIN: tl.constexpr = tl.constexpr(1)
UPSAMPLED: tl.constexpr = tl.constexpr(2)

# 64 pixels × 64 channels on 4 warps are 32 elements a thread, which leaves room for the addresses of the nine that a
# Gram product reads.
_ROWS, _COLUMNS, _CHANNELS = 4, 16, 64


@triton.jit
def gram_product(values, a, b, shift, row, column, n, mask, height, width, channels, merged_h, merged_w, slope):
    """Upsampling's Gram matrix per axis applied to LeakyReLU(a · values + b) − shift.

    ``values`` point at the image's own.
    """
    total = tl.zeros(mask.shape, dtype=tl.float32)
    # The matrix is tridiagonal, 3/8 and 5/4; an odd size crops the last pixel's second copy, which takes 1 away.
    centre_y = 1.25 - tl.where(row == height - 1, merged_h % 2, 0)
    centre_x = 1.25 - tl.where(column == width - 1, merged_w % 2, 0)
    for tap in range(9):
        i, j = tap // 3 - 1, tap % 3 - 1
        y = beyond(row + i, height, REPEAT)
        x = beyond(column + j, width, REPEAT)
        offsets = ((y * width + x) * channels)[:, None] + n[None, :]
        value = a * tl.load(values + offsets, mask=mask, other=0.0).to(tl.float32) + b
        value = tl.where(value > 0, value, slope * value) - shift
        weight = tl.where(i == 0, centre_y, 0.375) * tl.where(j == 0, centre_x, 0.375)
        total += weight[:, None] * value
    return total


@triton.jit
def copies_of(row, column, height, width, merged_h, merged_w):
    """Each pixel's weight in the upsampled sum.

    It is 4, or less where an odd size crops the last row or column.
    """
    copies_y = 2.0 - tl.where(row == height - 1, merged_h % 2, 0)
    copies_x = 2.0 - tl.where(column == width - 1, merged_w % 2, 0)
    return copies_y * copies_x


@triton.jit(do_not_specialize=SIZES)
def _merge_moments(
    raw, coef, partial, height, width, channels, merged_h, merged_w, tiles_x, tiles,
    merge: tl.constexpr, slope: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile's sum and sum of squares of the activation, upsampled or not.

    The value of the image's first pixel is subtracted, in place of the mean, which is not known yet. Otherwise the
    variance would be a small difference of large numbers where the mean is far from zero.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    tile = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    m = tl.arange(0, ROWS * COLUMNS)
    row = (tile // tiles_x) * ROWS + m // COLUMNS
    column = (tile % tiles_x) * COLUMNS + m % COLUMNS
    n = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = n < channels
    mask = ((row < height) & (column < width))[:, None] & inside[None, :]
    raw += image * height * width * channels
    coef += image * 4 * channels
    a = tl.load(coef + n, mask=inside, other=0.0)[None, :]
    b = tl.load(coef + channels + n, mask=inside, other=0.0)[None, :]
    first = a * tl.load(raw + n, mask=inside, other=0.0).to(tl.float32)[None, :] + b
    first = tl.where(first > 0, first, slope * first)
    offsets = ((row * width + column) * channels)[:, None] + n[None, :]
    value = a * tl.load(raw + offsets, mask=mask, other=0.0).to(tl.float32) + b
    value = tl.where(mask, tl.where(value > 0, value, slope * value) - first, 0.0)
    if merge == UPSAMPLED:
        gram = gram_product(raw, a, b, first, row, column, n, mask, height, width, channels, merged_h, merged_w, slope)
        shared = value * copies_of(row, column, height, width, merged_h, merged_w)[:, None]
    else:
        gram = value
        shared = value
    partial += (image * tiles + tile) * 2 * channels + n
    tl.store(partial, tl.sum(shared, axis=0), mask=inside)
    tl.store(partial + channels, tl.sum(value * gram, axis=0), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _merge_gradient(
    grad, raw, coef, merge_coef, edge_rows, edge_columns, partial,
    height, width, channels, merged_h, merged_w, tiles_x, tiles,
    merge: tl.constexpr, slope: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the activation's gradients through the variance and the border strips.

    Then finish as an epilogue does.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    tile = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    m = tl.arange(0, ROWS * COLUMNS)
    row = (tile // tiles_x) * ROWS + m // COLUMNS
    column = (tile % tiles_x) * COLUMNS + m % COLUMNS
    n = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = n < channels
    mask = ((row < height) & (column < width))[:, None] & inside[None, :]
    offsets = ((row * width + column) * channels)[:, None] + n[None, :]
    grad += image * height * width * channels
    raw += image * height * width * channels
    sums = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(coef + image * 4 * channels + n, mask=inside, other=0.0)[None, :]
    b = tl.load(coef + (image * 4 + 1) * channels + n, mask=inside, other=0.0)[None, :]
    pull = tl.load(merge_coef + image * 2 * channels + n, mask=inside, other=0.0)[None, :]
    mean = tl.load(merge_coef + (image * 2 + 1) * channels + n, mask=inside, other=0.0)[None, :]
    if merge == UPSAMPLED:
        sums += pull * gram_product(
            raw, a, b, mean, row, column, n, mask, height, width, channels, merged_h, merged_w, slope
        )
    else:
        value = a * tl.load(raw + offsets, mask=mask, other=0.0).to(tl.float32) + b
        sums += pull * (tl.where(value > 0, value, slope * value) - mean)
    if edge_rows is not None:
        for line in range(4):
            start = (image * 4 + line) * channels
            on_row = mask & (row == tl.where(line < 2, line, height - 4 + line))[:, None]
            on_column = mask & (column == tl.where(line < 2, line, width - 4 + line))[:, None]
            along = edge_rows + start * width + (column * channels)[:, None] + n[None, :]
            down = edge_columns + start * height + (row * channels)[:, None] + n[None, :]
            sums += tl.load(along, mask=on_row, other=0.0) + tl.load(down, mask=on_column, other=0.0)
    sums = store_gradient_sums(sums, partial, raw, coef, image, tile, tiles, offsets, n, mask, channels, slope)
    tl.store(grad + offsets, sums.to(grad.dtype.element_ty), mask=mask)


def merge_moments(feature: Operand, *, merge: int, merged: tuple[int, int], slope: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (N, C), of an activation, upsampled or not.

    Args:
        feature: (N, H, W, C) with coefficients a and b.
        merge: PLAIN or UPSAMPLED.
        merged: height and width that it is normalised at.
        slope: LeakyReLU's.
    """
    raw, coef, _ = feature
    assert coef is not None
    count, height, width, channels = raw.shape
    block = min(_CHANNELS, triton.next_power_of_2(channels))
    tiles_x = triton.cdiv(width, _COLUMNS)
    tiles = triton.cdiv(height, _ROWS) * tiles_x
    partial = raw.new_empty(count, tiles, 2, channels, dtype=torch.float32)
    _merge_moments[tiles, triton.cdiv(channels, block), count](
        raw, coef, partial, height, width, channels, *merged, tiles_x, tiles, merge=merge, slope=slope,
        ROWS=_ROWS, COLUMNS=_COLUMNS, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    total, squares = (partial.sum(dim=1) / (merged[0] * merged[1])).unbind(dim=1)
    first = torch.nn.functional.leaky_relu(coef[:, 0] * raw[:, 0, 0] + coef[:, 1], slope)
    return total + first, squares - total.square()


def merge_gradient(
    grad: Tensor,
    feature: Operand,
    merge_coefficients: Tensor,
    *,
    merge: int,
    merged: tuple[int, int],
    slope: float,
    edges: tuple[Tensor, Tensor] | None = None,
) -> Partial:
    """Complete a merged activation's gradient in place, up to normalisation's own.

    Args:
        grad: (N, H, W, C), the gradient through the convolution; overwritten with the sum over all ways, times
            LeakyReLU's derivative.
        feature: the activation.
        merge_coefficients: (N, 2, C): the gradient of its variance times 2 / pixels, and its mean.
        merge: PLAIN or UPSAMPLED.
        merged: height and width that it is normalised at.
        slope: LeakyReLU's.
        edges: gradients of its rows 0, 1, −2, −1, (N, 4, W, C), and columns, (N, 4, H, C), in fp32, to be added.

    Returns:
        The tiles' sums that :func:`~dipdefense.engine.kernels.normalisation.normalisation_gradient` takes.
    """
    raw, coef, _ = feature
    count, height, width, channels = raw.shape
    block = min(_CHANNELS, triton.next_power_of_2(channels))
    tiles_x = triton.cdiv(width, _COLUMNS)
    tiles = triton.cdiv(height, _ROWS) * tiles_x
    partial = raw.new_empty(count, tiles, 2, channels, dtype=torch.float32)
    edge_rows, edge_columns = edges or (None, None)
    _merge_gradient[tiles, triton.cdiv(channels, block), count](
        grad, raw, coef, merge_coefficients, edge_rows, edge_columns, partial,
        height, width, channels, *merged, tiles_x, tiles, merge=merge, slope=slope,
        ROWS=_ROWS, COLUMNS=_COLUMNS, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return Partial(partial, _ROWS, _COLUMNS)
