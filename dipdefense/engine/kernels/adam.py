# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""Adam over one flat buffer.

It also writes the parameters' copy in the operands' dtype.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _adam(
    parameters, grads, first, second, operands, iteration, corrections, size, beta1, beta2, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """Checked in Triton's interpreter; not yet run on a GPU."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    at = corrections + 2 * tl.load(iteration)
    rate, root = tl.load(at), tl.load(at + 1)
    grad = tl.load(grads + i, mask=mask, other=0.0)
    m = tl.load(first + i, mask=mask, other=0.0)
    v = tl.load(second + i, mask=mask, other=0.0)
    m += (1 - beta1) * (grad - m)
    v += (1 - beta2) * (grad * grad - v)
    value = tl.load(parameters + i, mask=mask, other=0.0) - rate * m / (tl.sqrt(v) * root + eps)
    tl.store(first + i, m, mask=mask)
    tl.store(second + i, v, mask=mask)
    tl.store(parameters + i, value, mask=mask)
    if operands is not None:
        tl.store(operands + i, value.to(operands.dtype.element_ty), mask=mask)


def bias_corrections(
    iterations: int, *, learning_rate: float, betas: tuple[float, float], device: torch.device
) -> Tensor:
    """Adam's bias corrections, with the learning rate: (iterations + 1, 2) fp32.

    Row t holds learning rate / (1 − β₁ᵗ) and 1 / sqrt(1 − β₂ᵗ); row 0 is not used. They are computed in fp64: in fp32
    the first 1 − β₂ᵗ would keep only four digits.
    """
    steps = torch.arange(iterations + 1, dtype=torch.float64, device="cpu").clamp(min=1)
    table = torch.stack([learning_rate / (1 - betas[0] ** steps), (1 - betas[1] ** steps).rsqrt()], dim=1)
    return table.to(device, torch.float32)


def adam(
    parameters: Tensor,
    grads: Tensor,
    moments: tuple[Tensor, Tensor],
    operands: Tensor | None,
    iteration: Tensor,
    corrections: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Update ``parameters`` and ``moments`` in place.

    Args:
        parameters: fp32 of any shape, contiguous, as all the other buffers.
        grads: fp32, of the same shape.
        moments: both fp32, zero at first.
        operands: the parameters' copy in the operands' dtype, or None where the operands are fp32.
        iteration: int64 of one element on the device, 1 at the first update; the caller counts.
        corrections: as :func:`bias_corrections` returned them.
        betas: the moments' decay rates.
        eps: Adam's ε.
    """
    block = 1024
    _adam[(triton.cdiv(parameters.numel(), block),)](
        parameters, grads, *moments, operands, iteration, corrections, parameters.numel(), *betas, eps,
        BLOCK=block, num_warps=4,
    )  # fmt: skip
