# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""The network's input: fixed noise plus fresh Gaussian noise.

The kernel that adds the fresh noise generates it. The generator is counter-based (Philox 4×32-10, Salmon et al.
2011). Its key is the image's seed, and its counter consists of iteration and position, so an image's noise depends
neither on its place in the batch nor on the batch's size.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _perturb(fixed, seeds, iteration, out, size, quarter, std, BLOCK: tl.constexpr):
    """Four normal random numbers for each of BLOCK counters.

    A counter's four elements are a quarter of the image's elements apart.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    image = tl.program_id(1).to(tl.int64)
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = counter * 0
    words = tl.philox(tl.load(seeds + image), counter, zero + tl.load(iteration).to(tl.int32), zero, zero)
    first, second = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(words[0]), tl.uint_to_uniform_float(words[1]))
    third, fourth = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(words[2]), tl.uint_to_uniform_float(words[3]))
    normals = (first, second, third, fourth)
    for part in tl.static_range(4):
        at = part * quarter + counter
        mask = (counter < quarter) & (at < size)
        value = tl.load(fixed + image * size + at, mask=mask, other=0.0) + std * normals[part]
        tl.store(out + image * size + at, value.to(out.dtype.element_ty), mask=mask)


def perturb(fixed: Tensor, seeds: Tensor, iteration: Tensor, out: Tensor, *, std: float) -> None:
    """Write ``fixed`` plus Gaussian noise to ``out``.

    Args:
        fixed: (N, H, W, channels) fp32, contiguous.
        seeds: (N,) int64, one per image.
        iteration: int64 or int32 of one element, on the device, where a graph's replays can change it.
        out: like ``fixed``, in the operands' dtype.
        std: the noise's standard deviation.
    """
    size = fixed[0].numel()
    quarter, block = triton.cdiv(size, 4), 512
    _perturb[triton.cdiv(quarter, block), len(fixed)](
        fixed, seeds, iteration, out, size, quarter, std, BLOCK=block, num_warps=4
    )
