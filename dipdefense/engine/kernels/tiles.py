# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""The kernels' block sizes, and how they load, pad and multiply a tile.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pixels beyond the border of a source tensor. MIRROR and REPEAT go one pixel beyond it.
NOTHING: tl.constexpr = tl.constexpr(0)
MIRROR: tl.constexpr = tl.constexpr(1)
REPEAT: tl.constexpr = tl.constexpr(2)

# The interpreter cannot multiply bf16. There the rounded operands are widened, which changes no product.
_INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


# Arguments that differ from scale to scale. The compiler does not specialise on them: variants would gain nothing,
# since channels are innermost, and take minutes to compile.
SIZES = (
    "in_h", "in_w", "out_h", "out_w", "grad_h", "grad_w", "height", "width", "merged_h", "merged_w",
    "spread_h", "spread_w", "pixels", "tiles_x", "tiles", "steps_w", "steps", "split_steps",
)  # fmt: skip


class Operand(NamedTuple):
    """A tensor (N, H, W, C) that is stored raw and completed on load.

    Without ``coefficients`` it is ``values``. With coefficients (N, 4, C) whose first rows are a and b, it is
    LeakyReLU(a · values + b). With ``raw`` as well, ``values`` are a gradient after LeakyReLU's derivative, the rows
    are p, q and r, and the operand is the gradient before normalisation, p · values + q · raw + r.
    """

    values: Tensor
    coefficients: Tensor | None = None
    raw: Tensor | None = None


def require_contiguous(*tensors: Tensor | None) -> None:
    """Refuse tensors whose layout the kernels would misread.

    Raises:
        ValueError: a tensor is not contiguous.
    """
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"the kernels take contiguous (N, H, W, C) tensors, got shape {tuple(tensor.shape)} with strides "
                f"{tensor.stride()}; use permute(0, 2, 3, 1).contiguous()"
            )


class Blocks(NamedTuple):
    """One program's share of an implicit matrix product, and its warps and stages."""

    rows: int
    columns: int
    outer: int
    inner: int
    num_warps: int
    num_stages: int


@functools.cache
def stages_on(device: torch.device) -> int:
    """How many loads may be under way: three where shared memory suffices, else two.

    With three the widest kernels take 144 KiB of a program's shared memory. With two they take 72 KiB, which a GPU of
    compute capability 8.6 or 8.9 has.
    """
    return 3 if device.type != "cuda" or shared_memory(device) >= 144 * 1024 else 2


def shared_memory(device: torch.device) -> int:
    """The shared memory of one program in bytes, as Triton checks it at a launch."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def convolution_blocks(
    inputs: int, outputs: int, *, element_size: int, filtered: bool = False, stages: int = 3
) -> Blocks:
    """A convolution's blocks: pixels × output channels, in steps of input channels.

    Pixels are ``rows`` × ``columns``, output channels ``outer`` and input channels ``inner``.

    - 128 × 128 sums on 8 warps are 64 registers per thread. Work on load takes as many again: compiled for sm_90 the
      variants need 160 to 255 registers, which is one program per multiprocessor. A tile of 8 × 16 pixels has fewer
      border pixels than a line of 128.
    - Steps of 128 bytes per pixel are a full cache line. A gradient's two tensors and the weights are the most that is
      loaded ahead: 3 stages of them are 144 KiB of an H100's 227.
    - The filter of the layer below needs registers for the addresses of what it reads, and its convolution has few
      input channels: half as many pixels, or the sums spill.
    - Up to 16 output channels (skip branches, the last layer) a tile has too little arithmetic for more than 4 warps.
    """
    inner = min(128 // element_size, max(16, triton.next_power_of_2(inputs)))
    if outputs <= 16:
        return Blocks(8, 16, 16, inner, 4, stages)
    return Blocks(4 if filtered else 8, 16, min(128, triton.next_power_of_2(outputs)), inner, 8, stages)


def weight_blocks(inputs: int, outputs: int, *, element_size: int, stages: int = 3) -> Blocks:
    """A weight gradient's blocks: input × output channels, in steps of pixels.

    Input channels are ``rows``, output channels ``outer`` and pixels ``inner``; ``columns`` is unused.

    With the whole 128 × 128 matrix of a tap in one program, each operand is read once per tap. Steps of 64 pixels in
    bf16 take as much memory as above.
    """
    rows, outer = (min(128, max(16, triton.next_power_of_2(size))) for size in (inputs, outputs))
    return Blocks(rows, 1, outer, 128 // element_size, 8 if rows * outer > 4096 else 4, stages)


@triton.jit
def load_operand(values, coefficients, raw, offsets, channel, channels, mask, slope: tl.constexpr):
    """Load an :class:`Operand`'s elements; masked ones are zero.

    Coefficients point at the image's own.
    """
    x = tl.load(values + offsets, mask=mask, other=0.0)
    if coefficients is not None:
        inside = channel < channels
        x = x.to(tl.float32) * tl.load(coefficients + channel, mask=inside, other=0.0)
        if raw is not None:
            z = tl.load(raw + offsets, mask=mask, other=0.0).to(tl.float32)
            x += z * tl.load(coefficients + channels + channel, mask=inside, other=0.0)
            x += tl.load(coefficients + 2 * channels + channel, mask=inside, other=0.0)
        else:
            x += tl.load(coefficients + channels + channel, mask=inside, other=0.0)
            x = tl.where(x > 0, x, slope * x)
        x = tl.where(mask, x, 0.0)
    return x


@triton.jit
def beyond(index, size, border: tl.constexpr):
    """The index that a padded one reads: mirrored, repeated, or as it is."""
    if border == MIRROR:
        index = tl.where(index < 0, -index, index)
        index = tl.where(index >= size, 2 * (size - 1) - index, index)
    elif border == REPEAT:
        index = tl.minimum(tl.maximum(index, 0), size - 1)
    return index


@triton.jit
def multiply(a, b, sums):
    """Add a @ b to the sums, in fp32; fp32 operands are not shortened to tf32."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")
