# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""Convolutions and their data gradients as one implicit matrix product an image.

One kernel serves all four, which differ in the source pixel that a tap reads for output pixel o: (stride · o +
direction · tap + shift) / dilation, where that is a whole number. (Dilation puts zeros between the source's pixels.)

================================  ======  =========  =====  ========  ======================
                                  stride  direction  shift  dilation  border
================================  ======  =========  =====  ========  ======================
convolution, stride s             s       +1         −1     1         mirrored on load
its data gradient                 1       −1         +1     s         folded back (mirrored)
transposed, of a repeated ring    1       −1         −1     2         repeated on load
its data gradient                 2       +1         +1     1         folded back (repeated)
================================  ======  =========  =====  ========  ======================

Folding back is the adjoint of padding: a pixel with a copy in the ring around the image also collects the copy's
gradient. Few tiles hold such pixels, and only those go through the taps again.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipdefense.engine.kernels.epilogues import Finish, Partial, add_filtered, store_gradient_sums, store_moments
from dipdefense.engine.kernels.tiles import (
    MIRROR,
    NOTHING,
    REPEAT,
    SIZES,
    Operand,
    beyond,
    convolution_blocks,
    load_operand,
    multiply,
    require_contiguous,
    stages_on,
)


class Geometry(NamedTuple):
    """How taps read the source, its padding, and the padding's gradient.

    Each geometry is a row of the table above.
    """

    stride: int
    direction: int
    shift: int
    dilation: int
    border: int = 0
    fold: int = 0


def forward_geometry(kernel: int, stride: int = 1) -> Geometry:
    """The convolution itself, padded by reflection."""
    return Geometry(stride, 1, -(kernel // 2), 1, border=MIRROR.value)


def gradient_geometry(kernel: int, stride: int = 1) -> Geometry:
    """Its data gradient."""
    return Geometry(1, -1, kernel // 2, stride, fold=MIRROR.value if kernel == 3 else 0)


TRANSPOSED = Geometry(1, -1, -1, 2, border=REPEAT.value)
TRANSPOSED_GRADIENT = Geometry(2, 1, 1, 1, fold=REPEAT.value)


@triton.jit
def _add_tap(
    sums, x, x_coef, x_raw, weight, row, column, pixel, tap_y, tap_x, first, n,
    in_h, in_w, inputs, outputs, w_in, w_out,
    kernel: tl.constexpr, stride: tl.constexpr, direction: tl.constexpr, shift: tl.constexpr, dilation: tl.constexpr,
    border: tl.constexpr, slope: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Add a tap's product over BLOCK_IN channels for the output pixels (row, column)."""
    y = beyond((row * stride + direction * tap_y + shift) // dilation, in_h, border)
    x_column = beyond((column * stride + direction * tap_x + shift) // dilation, in_w, border)
    k = first + tl.arange(0, BLOCK_IN)
    inside = pixel & (y >= 0) & (y < in_h) & (x_column >= 0) & (x_column < in_w)
    mask = inside[:, None] & (k < inputs)[None, :]
    offsets = ((y * in_w + x_column) * inputs)[:, None] + k[None, :]
    a = load_operand(x, x_coef, x_raw, offsets, k[None, :], inputs, mask, slope)
    taps = weight + (tap_y * kernel + tap_x) * inputs * outputs
    b_mask = (k < inputs)[:, None] & (n < outputs)[None, :]
    b = tl.load(taps + k[:, None] * w_in + n[None, :] * w_out, mask=b_mask, other=0.0)
    return multiply(a.to(b.dtype), b, sums)


@triton.jit(do_not_specialize=SIZES)
def _convolve(
    x, x_coef, x_raw, weight, out, partial,
    spread_out, strip_rows, strip_columns,
    y_raw, y_coef,
    in_h, in_w, out_h, out_w, inputs, outputs, weight_step, w_in, w_out, tiles_x, tiles,
    kernel: tl.constexpr, stride: tl.constexpr, direction: tl.constexpr, shift: tl.constexpr, dilation: tl.constexpr,
    border: tl.constexpr, fold: tl.constexpr, slope: tl.constexpr,
    accumulate: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """One tile of one image: ROWS × COLUMNS output pixels, BLOCK_OUT channels.

    The pixels are of one phase, of which there are dilation².

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    program = tl.program_id(0)
    phase, tile = program // tiles, program % tiles
    image = tl.program_id(2).to(tl.int64)
    phase_y, phase_x = phase // dilation, phase % dilation
    top = (tile // tiles_x) * ROWS
    left = (tile % tiles_x) * COLUMNS
    m = tl.arange(0, ROWS * COLUMNS)
    row = (top + m // COLUMNS) * dilation + phase_y
    column = (left + m % COLUMNS) * dilation + phase_x
    pixel = (row < out_h) & (column < out_w)
    n = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)

    x += image * in_h * in_w * inputs
    weight += image * weight_step
    if x_coef is not None:
        x_coef += image * 4 * inputs
    if x_raw is not None:
        x_raw += image * in_h * in_w * inputs

    # Of a dilated source only every other tap meets a pixel; which ones, the phase decides.
    first_y = (phase_y + shift + 2) % dilation
    first_x = (phase_x + shift + 2) % dilation
    taps_y = (kernel - first_y + dilation - 1) // dilation
    taps_x = (kernel - first_x + dilation - 1) // dilation
    chunks = tl.cdiv(inputs, BLOCK_IN)

    sums = tl.zeros((ROWS * COLUMNS, BLOCK_OUT), dtype=tl.float32)
    for step in range(taps_y * taps_x * chunks):
        tap = step // chunks
        sums = _add_tap(
            sums, x, x_coef, x_raw, weight, row, column, pixel,
            first_y + (tap // taps_x) * dilation, first_x + (tap % taps_x) * dilation, (step % chunks) * BLOCK_IN, n,
            in_h, in_w, inputs, outputs, w_in, w_out,
            kernel, stride, direction, shift, dilation, border, slope, BLOCK_IN,
        )  # fmt: skip
    if fold != NOTHING:
        # A ring pixel's gradient goes to the pixel it copies: row `near` for the ring's first, out_h − 1 − near for
        # its last; the same for columns; corners do both.
        near: tl.constexpr = 1 if fold == MIRROR else 0
        for side in range(1, 9):
            side_y, side_x = side // 3, side % 3
            copied_y = tl.where(side_y == 1, near, out_h - 1 - near)
            copied_x = tl.where(side_x == 1, near, out_w - 1 - near)
            ring_y = tl.where(side_y == 1, -1, out_h)
            ring_x = tl.where(side_x == 1, -1, out_w)
            holds_y = (side_y == 0) | ((copied_y >= top * dilation) & (copied_y < (top + ROWS) * dilation))
            holds_x = (side_x == 0) | ((copied_x >= left * dilation) & (copied_x < (left + COLUMNS) * dilation))
            if holds_y & holds_x:
                ring_row = tl.where(side_y == 0, row, tl.where(row == copied_y, ring_y, -2))
                ring_column = tl.where(side_x == 0, column, tl.where(column == copied_x, ring_x, -2))
                copies = pixel & (ring_row > -2) & (ring_column > -2)
                for tap in range(taps_y * taps_x):
                    tap_y = first_y + (tap // taps_x) * dilation
                    tap_x = first_x + (tap % taps_x) * dilation
                    source_y = ring_y * stride + direction * tap_y + shift
                    source_x = ring_x * stride + direction * tap_x + shift
                    reached_y = (side_y == 0) | ((source_y >= 0) & (source_y < in_h * dilation))
                    reached_x = (side_x == 0) | ((source_x >= 0) & (source_x < in_w * dilation))
                    if reached_y & reached_x:
                        for first in range(0, inputs, BLOCK_IN):
                            sums = _add_tap(
                                sums, x, x_coef, x_raw, weight, ring_row, ring_column, copies, tap_y, tap_x, first, n,
                                in_h, in_w, inputs, outputs, w_in, w_out,
                                kernel, stride, direction, shift, dilation, border, slope, BLOCK_IN,
                            )  # fmt: skip

    image_out = image * out_h * out_w * outputs
    mask = pixel[:, None] & (n < outputs)[None, :]
    offsets = ((row * out_w + column) * outputs)[:, None] + n[None, :]
    if spread_out is not None:
        sums = add_filtered(
            sums, spread_out, strip_rows, strip_columns, image, row, column, n, mask, out_h, out_w, outputs
        )
    if accumulate:
        sums += tl.load(out + image_out + offsets, mask=mask, other=0.0).to(tl.float32)
    if y_raw is not None:
        sums = store_gradient_sums(
            sums, partial, y_raw + image_out, y_coef, image, program, tiles * dilation * dilation,
            offsets, n, mask, outputs, slope,
        )  # fmt: skip
    elif partial is not None:
        store_moments(sums, partial, image, tile, tiles, n, mask, pixel, outputs)
    tl.store(out + image_out + offsets, sums.to(out.dtype.element_ty), mask=mask)


def convolve(
    x: Operand,
    weight: Tensor,
    geometry: Geometry,
    *,
    size: tuple[int, int],
    slope: float,
    backwards: bool = False,
    finish: Finish | None = None,
    out: Tensor | None = None,
    accumulate: bool = False,
    partial: bool = False,
) -> tuple[Tensor, Partial | None]:
    """Run the kernel.

    Args:
        x: the source, (N, H, W, channels), completed on load.
        weight: (N, k·k, in, out), contiguous but for the image axis, in the operands' dtype.
        geometry: which source pixel a tap reads.
        size: height and width of the result.
        slope: LeakyReLU's, wherever one is applied.
        backwards: multiply by the transposed weights, out to in.
        finish: the epilogue that the sums go through before they are stored.
        out: (N, height, width, channels) to write to; new in the source's dtype by default.
        accumulate: add to ``out`` instead of overwriting it.
        partial: also return each tile's statistics: mean and sum of squared deviations; or, where ``finish`` has an
            activation and this must be True, the sums of the gradient and of the gradient times the normalised value.

    Raises:
        ValueError: a tensor is not contiguous.
    """
    finish = finish or Finish()
    require_contiguous(*x, *finish, out, weight[0])
    count, in_h, in_w, inputs = x.values.shape
    outputs, kernel = weight.shape[2 if backwards else 3], {1: 1, 9: 3}[weight.shape[1]]
    if out is None:
        out = torch.empty(count, *size, outputs, dtype=x.values.dtype, device=x.values.device)
    element_size, filtered = x.values.element_size(), finish.spread is not None
    stages = stages_on(out.device)
    blocks = convolution_blocks(inputs, outputs, element_size=element_size, filtered=filtered, stages=stages)
    phase_size = [-(-side // geometry.dilation) for side in size]
    tiles_y, tiles_x = (-(-side // block) for side, block in zip(phase_size, blocks[:2], strict=True))
    tiles, phases = tiles_y * tiles_x, geometry.dilation**2
    sums = out.new_empty(count, tiles * phases, 2, outputs, dtype=torch.float32) if partial else None
    w_in, w_out = (1, inputs) if backwards else (outputs, 1)
    _convolve[tiles * phases, triton.cdiv(outputs, blocks.outer), count](
        x.values, x.coefficients, x.raw, weight, out, sums, *finish,
        in_h, in_w, *size, inputs, outputs, weight.stride(0), w_in, w_out, tiles_x, tiles,
        kernel=kernel, **geometry._asdict(), slope=slope, accumulate=accumulate,
        ROWS=blocks.rows, COLUMNS=blocks.columns, BLOCK_OUT=blocks.outer, BLOCK_IN=blocks.inner,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    return out, None if sums is None else Partial(sums, blocks.rows, blocks.columns)
