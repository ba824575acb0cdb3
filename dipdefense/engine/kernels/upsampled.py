# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""The upsampled convolution's border, and the adjoint of its filter.

The module ``convolution`` has the transposed convolution, and ``epilogues`` has the filter.

The mathematics is that of :mod:`dipdefense.engine.upsampling`, with the channels innermost. The border strips are a few
small matrix products, for which torch's own operators are good enough.

The kernel has been checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dipdefense.engine.interpolation import Strips, strip_gradients, strips
from dipdefense.engine.kernels.epilogues import filter_tap
from dipdefense.engine.kernels.tiles import SIZES, Operand, load_operand


@triton.jit(do_not_specialize=SIZES)
def _filter_adjoint(
    grad, grad_coef, grad_raw, out, height, width, spread_h, spread_w, channels,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Filter the raw sums' gradient with [1 3 3 1]/4 along both axes.

    The gradient is completed on load. Each program computes PIXELS squares of 2 × 2 results, which share the 25
    gradients that they read.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    image = tl.program_id(2).to(tl.int64)
    squares_w = tl.cdiv(spread_w, 2)
    square = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, column = square // squares_w * 2, square % squares_w * 2
    n = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    grad += image * height * width * channels
    grad_coef += image * 4 * channels
    grad_raw += image * height * width * channels
    top_left = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    top_right = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    bottom_left = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    bottom_right = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for i in range(5):
        y = row - 3 + i
        first = tl.where(i < 4, filter_tap(i), 0.0)
        second = tl.where(i > 0, filter_tap(i - 1), 0.0)
        left = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
        right = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
        for j in range(5):
            x = column - 3 + j
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            mask = inside[:, None] & (n < channels)[None, :]
            offsets = ((y * width + x) * channels)[:, None] + n[None, :]
            value = load_operand(grad, grad_coef, grad_raw, offsets, n[None, :], channels, mask, 0.0)
            left += tl.where(j < 4, filter_tap(j), 0.0) * value
            right += tl.where(j > 0, filter_tap(j - 1), 0.0) * value
        top_left += first * left
        top_right += first * right
        bottom_left += second * left
        bottom_right += second * right
    out += image * spread_h * spread_w * channels
    at = out + ((row * spread_w + column) * channels)[:, None] + n[None, :]
    below, beside = row + 1 < spread_h, column + 1 < spread_w
    inside = (row < spread_h)[:, None] & (n < channels)[None, :]
    dtype = out.dtype.element_ty
    tl.store(at, top_left.to(dtype), mask=inside)
    tl.store(at + channels, top_right.to(dtype), mask=inside & beside[:, None])
    tl.store(at + spread_w * channels, bottom_left.to(dtype), mask=inside & below[:, None])
    tl.store(at + (spread_w + 1) * channels, bottom_right.to(dtype), mask=inside & (below & beside)[:, None])


def spread_size(height: int, width: int) -> tuple[int, int]:
    """The size of the transposed convolution's result.

    Filtered and cropped, the result is (height, width).
    """
    return 2 * (-(-height // 2)) + 3, 2 * (-(-width // 2)) + 3


def filter_adjoint(grad: Operand) -> Tensor:
    """The gradient of the transposed convolution's result, from the raw sums'.

    It is (N, *spread_size(H, W), C).
    """
    count, height, width, channels = grad.values.shape
    size = spread_size(height, width)
    out = torch.empty(count, *size, channels, dtype=grad.values.dtype, device=grad.values.device)
    pixels, block = 16, min(128, triton.next_power_of_2(channels))
    squares = -(-size[0] // 2) * -(-size[1] // 2)
    _filter_adjoint[triton.cdiv(squares, pixels), triton.cdiv(channels, block), count](
        grad.values, grad.coefficients, grad.raw, out, height, width, *size, channels,
        PIXELS=pixels, CHANNELS=block, num_warps=4,
    )  # fmt: skip
    return out


def lines_of(feature: Operand, slope: float) -> tuple[Tensor, Tensor]:
    """Rows and columns 0, 1, −2 and −1 of the activation, in fp32.

    Rows are (N, 4, W, C), and columns are (N, 4, H, C).
    """
    raw, coef, _ = feature
    assert coef is not None
    height, width = raw.shape[1:3]
    a, b = coef[:, :2, None, None].unbind(dim=1)
    rows = torch.stack([raw[:, y] for y in (0, 1, height - 2, height - 1)], dim=1)
    columns = torch.stack([raw[:, :, x] for x in (0, 1, width - 2, width - 1)], dim=1)
    return F.leaky_relu(a * rows + b, slope), F.leaky_relu(a * columns + b, slope)


def ends_of(grad: Operand) -> tuple[Tensor, Tensor]:
    """First and last row and column of the raw sums' gradient, in fp32.

    Rows are (N, 2, W, C), and columns are (N, 2, H, C).
    """
    values, coef, raw = grad
    assert coef is not None
    assert raw is not None
    p, q, r = coef[:, :3, None, None].unbind(dim=1)
    (rows, raw_rows), (columns, raw_columns) = (
        [torch.stack([tensor.select(axis, end) for end in (0, -1)], dim=1) for tensor in (values, raw)]
        for axis in (1, 2)
    )
    return p * rows + q * raw_rows + r, p * columns + q * raw_columns + r


def borders(
    rows: Tensor, columns: Tensor, weight: Tensor, size: tuple[int, int], dtype: torch.dtype
) -> tuple[Strips, Strips]:
    """Reflection minus replication along top and bottom, and along the sides.

    Args:
        rows: as :func:`lines_of` returned them, and ``columns``.
        columns: the same, along the other axis.
        weight: (N, 9, in, out), taps mirrored.
        size: height and width of the upsampled tensor.
        dtype: of the operands of the products.
    """
    height, width = size
    taps = weight.to(dtype).unflatten(1, (3, 3))
    above_below, sides = (
        torch.stack([taps.select(axis, 2), taps.select(axis, 0)], dim=1).transpose(2, 3) for axis in (1, 2)
    )
    return (
        strips(rows, above_below, height, width, reflect=True),
        strips(columns, sides, width, height, reflect=False),
    )


def border_gradients(
    pairs: tuple[Strips, Strips], ends: tuple[Tensor, Tensor], grad_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the lines that :func:`borders` was given.

    Those of the weights are added to ``grad_weight``.
    """
    taps = grad_weight.unflatten(1, (3, 3))
    lines = []
    for axis, (pair, end) in enumerate(zip(pairs, ends, strict=True), start=1):
        grad_lines, grad_taps = strip_gradients(pair, end)
        for side in (0, 1):
            taps.select(axis, 2 - 2 * side).add_(grad_taps[:, side].transpose(1, 2))
        lines.append(grad_lines)
    return lines[0], lines[1]
