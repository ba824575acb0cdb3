# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""Weight gradients: per tap a matrix product, (in × pixels) @ (pixels × out).

Where few images leave the GPU idle, the pixels are split over several programs; each writes its own sums and a second
kernel adds them, always in the same order.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipdefense.engine.kernels.tiles import (
    MIRROR,
    REPEAT,
    SIZES,
    Operand,
    beyond,
    load_operand,
    multiply,
    require_contiguous,
    stages_on,
    weight_blocks,
)

# Enough programs for an H100's 132 multiprocessors, two on each, more than once.
_PROGRAMS = 512


class Pairing(NamedTuple):
    """Which pixels of input and gradient a tap multiplies, at step o of the sum.

    Along each axis the input is read at in_stride · o + in_tap · tap + in_shift, mirrored or repeated beyond the
    border, and the gradient at grad_stride · o + grad_tap · tap + grad_shift, zero beyond it.
    """

    in_stride: int
    in_tap: int
    in_shift: int
    border: int
    grad_stride: int
    grad_tap: int
    grad_shift: int


def convolution_pairing(kernel: int, stride: int = 1) -> Pairing:
    """The sum runs over a convolution's output pixels."""
    return Pairing(stride, 1, -(kernel // 2), MIRROR.value, 1, 0, 0)


TRANSPOSED_PAIRING = Pairing(1, 0, -1, REPEAT.value, 2, 1, -1)
"""The sum runs over a transposed convolution's input pixels with the ring around them."""


@triton.jit(do_not_specialize=SIZES)
def _weight_gradient(
    x, x_coef, grad, grad_coef, grad_raw, out,
    in_h, in_w, grad_h, grad_w, steps_w, steps, inputs, outputs, split_steps, out_split, out_image,
    kernel: tl.constexpr, in_stride: tl.constexpr, in_tap: tl.constexpr, in_shift: tl.constexpr,
    border: tl.constexpr, grad_stride: tl.constexpr, grad_tap: tl.constexpr, grad_shift: tl.constexpr,
    slope: tl.constexpr, fp32_operands: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_STEPS: tl.constexpr,
):  # fmt: skip
    """BLOCK_IN × BLOCK_OUT of a tap's gradient, over one split's pixels of one image.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    # Taps and channel blocks come first, so that programs that read the same pixels run side by side.
    block = tl.program_id(0)
    split = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    blocks_out = tl.cdiv(outputs, BLOCK_OUT)
    tap = block % (kernel * kernel)
    block = block // (kernel * kernel)
    k = (block // blocks_out) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    n = (block % blocks_out) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    tap_y, tap_x = tap // kernel, tap % kernel
    x += image * in_h * in_w * inputs
    grad += image * grad_h * grad_w * outputs
    if x_coef is not None:
        x_coef += image * 4 * inputs
    if grad_coef is not None:
        grad_coef += image * 4 * outputs
    if grad_raw is not None:
        grad_raw += image * grad_h * grad_w * outputs
    sums = tl.zeros((BLOCK_IN, BLOCK_OUT), dtype=tl.float32)
    for first in range(split * split_steps, tl.minimum((split + 1) * split_steps, steps), BLOCK_STEPS):
        step = first + tl.arange(0, BLOCK_STEPS)
        row, column = step // steps_w, step % steps_w
        y = beyond(row * in_stride + in_tap * tap_y + in_shift, in_h, border)
        x_column = beyond(column * in_stride + in_tap * tap_x + in_shift, in_w, border)
        a_mask = (step < steps)[:, None] & (k < inputs)[None, :]
        offsets = ((y * in_w + x_column) * inputs)[:, None] + k[None, :]
        a = load_operand(x, x_coef, None, offsets, k[None, :], inputs, a_mask, slope)
        y = row * grad_stride + grad_tap * tap_y + grad_shift
        x_column = column * grad_stride + grad_tap * tap_x + grad_shift
        inside = (step < steps) & (y >= 0) & (y < grad_h) & (x_column >= 0) & (x_column < grad_w)
        b_mask = inside[:, None] & (n < outputs)[None, :]
        offsets = ((y * grad_w + x_column) * outputs)[:, None] + n[None, :]
        b = load_operand(grad, grad_coef, grad_raw, offsets, n[None, :], outputs, b_mask, slope)
        if fp32_operands:
            sums = multiply(tl.trans(a.to(tl.float32)), b.to(tl.float32), sums)
        else:
            sums = multiply(tl.trans(a.to(tl.bfloat16)), b.to(tl.bfloat16), sums)
    out += split * out_split + image * out_image + (tap * inputs + k[:, None]) * outputs + n[None, :]
    tl.store(out, sums, mask=(k < inputs)[:, None] & (n < outputs)[None, :])


@triton.jit
def _add_splits(parts, out, size, splits, split_step, image_step, out_image, BLOCK: tl.constexpr):
    """Add the splits' sums in order.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(parts + split * split_step + image * image_step + i, mask=i < size, other=0.0)
    tl.store(out + image * out_image + i, total, mask=i < size)


def weight_gradient(
    x: Operand,
    grad: Operand,
    out: Tensor,
    pairing: Pairing,
    *,
    slope: float,
    fp32: bool = False,
    splits: int | None = None,
) -> None:
    """Write the gradient of the weights to ``out``.

    Args:
        x: the layer's input, (N, H, W, in).
        grad: the gradient of its output, (N, H', W', out).
        out: (N, k·k, in, out) fp32, contiguous but for the image axis.
        pairing: which pixels are multiplied.
        slope: LeakyReLU's, where the input has one.
        fp32: multiply in fp32 even if the tensors are bf16.
        splits: number of programs that share the pixels; by default enough to fill a GPU.

    Raises:
        ValueError: a tensor is not contiguous.
    """
    require_contiguous(*x, *grad, out[0])
    count, in_h, in_w, inputs = x.values.shape
    grad_h, grad_w, outputs = grad.values.shape[1:]
    kernel = {1: 1, 9: 3}[out.shape[1]]
    # A transposed convolution's sum runs over its input and the ring around it.
    steps_h, steps_w = (in_h + 2, in_w + 2) if pairing == TRANSPOSED_PAIRING else (grad_h, grad_w)
    steps = steps_h * steps_w
    fp32 = fp32 or x.values.dtype == torch.float32
    blocks = weight_blocks(inputs, outputs, element_size=4 if fp32 else 2, stages=stages_on(out.device))
    programs = kernel**2 * triton.cdiv(inputs, blocks.rows) * triton.cdiv(outputs, blocks.outer)
    splits = splits or triton.cdiv(_PROGRAMS, programs * count)
    split_steps = triton.cdiv(triton.cdiv(steps, splits), blocks.inner) * blocks.inner
    splits = triton.cdiv(steps, split_steps)
    size = kernel**2 * inputs * outputs
    parts = out if splits == 1 else out.new_empty(splits, count, size)
    split_step, image_step = (0, out.stride(0)) if splits == 1 else (count * size, size)
    _weight_gradient[programs, splits, count](
        x.values, x.coefficients, grad.values, grad.coefficients, grad.raw, parts,
        in_h, in_w, grad_h, grad_w, steps_w, steps, inputs, outputs, split_steps, split_step, image_step,
        kernel=kernel, **pairing._asdict(), slope=slope,
        fp32_operands=fp32,
        BLOCK_IN=blocks.rows, BLOCK_OUT=blocks.outer, BLOCK_STEPS=blocks.inner,
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    if splits > 1:
        _add_splits[triton.cdiv(size, 1024), count](
            parts, out, size, splits, split_step, image_step, out.stride(0), BLOCK=1024
        )
