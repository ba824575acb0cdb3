# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
"""From tiles' statistics to coefficients that the next kernel applies on load.

A program computes those of a block of channels of one image.

The tiles' sums are always added in the same order, and there are no atomic additions: the same input gives the same
bits.

Checked in Triton's interpreter on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipdefense.engine.kernels.epilogues import Partial
from dipdefense.engine.kernels.tiles import SIZES

_TILES = 32
_CHANNELS = 32


@triton.jit(do_not_specialize=SIZES)
def _finish_moments(
    partial, scale, shift, coef, tiles, tiles_x, height, width, channels, parameter_step, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Combine the tiles' moments; store a, b, mean and inverse deviation.

    The moments are combined as by Chan et al. (1979).

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = n < channels
    partial += image * tiles * 2 * channels
    pixels = height * width
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    # First the mean, then the deviations about it: the second pass finds the few tiles' numbers in the cache.
    for first in range(0, tiles, TILES):
        t = first + tl.arange(0, TILES)
        count = tl.minimum(ROWS, height - t // tiles_x * ROWS) * tl.minimum(COLUMNS, width - t % tiles_x * COLUMNS)
        mask = (t < tiles)[:, None] & inside[None, :]
        mean = tl.load(partial + (t * 2 * channels)[:, None] + n[None, :], mask=mask, other=0.0)
        total += tl.sum(mean * count.to(tl.float32)[:, None], axis=0)
    mean_all = total / pixels
    squares = tl.zeros((CHANNELS,), dtype=tl.float32)
    for first in range(0, tiles, TILES):
        t = first + tl.arange(0, TILES)
        count = tl.minimum(ROWS, height - t // tiles_x * ROWS) * tl.minimum(COLUMNS, width - t % tiles_x * COLUMNS)
        mask = (t < tiles)[:, None] & inside[None, :]
        at = partial + (t * 2 * channels)[:, None] + n[None, :]
        apart = tl.where(mask, tl.load(at, mask=mask, other=0.0) - mean_all[None, :], 0.0)
        within = tl.load(at + channels, mask=mask, other=0.0)
        squares += tl.sum(within + apart * apart * count.to(tl.float32)[:, None], axis=0)
    inverse = 1.0 / tl.sqrt(squares / pixels + eps)
    a = inverse * tl.load(scale + image * parameter_step + n, mask=inside, other=0.0)
    b = tl.load(shift + image * parameter_step + n, mask=inside, other=0.0) - mean_all * a
    coef += image * 4 * channels + n
    tl.store(coef, a, mask=inside)
    tl.store(coef + channels, b, mask=inside)
    tl.store(coef + 2 * channels, mean_all, mask=inside)
    tl.store(coef + 3 * channels, inverse, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _finish_gradient(
    partial, coef, grad_coef, grad_scale, grad_shift, tiles, pixels, channels, parameter_step,
    TILES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add the tiles' sums; store p, q, r and the gradients of scale and shift.

    With g the gradient after LeakyReLU's derivative and x̂ the normalised value, the gradient of the raw value is
    a (g − mean(g) − x̂ mean(g x̂)) = p g + q raw + r.

    Checked in Triton's interpreter; not yet run on a GPU.
    """
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = n < channels
    partial += image * tiles * 2 * channels
    plain = tl.zeros((CHANNELS,), dtype=tl.float32)
    weighted = tl.zeros((CHANNELS,), dtype=tl.float32)
    for first in range(0, tiles, TILES):
        t = first + tl.arange(0, TILES)
        mask = (t < tiles)[:, None] & inside[None, :]
        at = partial + (t * 2 * channels)[:, None] + n[None, :]
        plain += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
        weighted += tl.sum(tl.load(at + channels, mask=mask, other=0.0), axis=0)
    tl.store(grad_scale + image * parameter_step + n, weighted, mask=inside)
    tl.store(grad_shift + image * parameter_step + n, plain, mask=inside)
    coef += image * 4 * channels + n
    a = tl.load(coef, mask=inside, other=0.0)
    mean = tl.load(coef + 2 * channels, mask=inside, other=0.0)
    inverse = tl.load(coef + 3 * channels, mask=inside, other=0.0)
    q = -a * inverse * weighted / pixels
    grad_coef += image * 4 * channels + n
    tl.store(grad_coef, a, mask=inside)
    tl.store(grad_coef + channels, q, mask=inside)
    tl.store(grad_coef + 2 * channels, -a * plain / pixels - q * mean, mask=inside)


def normalisation(raw: Tensor, partial: Partial, scale: Tensor, shift: Tensor, *, eps: float) -> Tensor:
    """The coefficients a, b, mean and inverse deviation, (N, 4, C), from the tiles.

    Args:
        raw: the convolution's result (N, H, W, C); only its shape counts.
        partial: as :func:`~dipdefense.engine.kernels.convolution.convolve` returned it with them.
        scale: (N, C), rows at any stride, and ``shift`` with the same.
        shift: (N, C).
        eps: added to the biased variance.
    """
    count, height, width, channels = raw.shape
    sums, rows, columns = partial
    coef = raw.new_empty(count, 4, channels, dtype=torch.float32)
    _finish_moments[triton.cdiv(channels, _CHANNELS), count](
        sums, scale, shift, coef, sums.shape[1], triton.cdiv(width, columns), height, width, channels,
        scale.stride(0), eps, ROWS=rows, COLUMNS=columns, TILES=_TILES, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return coef


def normalisation_gradient(
    raw: Tensor, partial: Partial, coefficients: Tensor, grad_scale: Tensor, grad_shift: Tensor
) -> Tensor:
    """The coefficients p, q and r, (N, 4, C); the fourth row is unused.

    The gradients of scale and shift are written too.

    Args:
        raw: the normalised layer's raw values (N, H, W, C); only their shape counts.
        partial: as ``convolve`` returned it with the gradient.
        coefficients: as :func:`normalisation` returned them.
        grad_scale: (N, C) to write to, rows at any stride, and ``grad_shift`` with the same.
        grad_shift: (N, C) to write to.
    """
    count, height, width, channels = raw.shape
    grad_coef = torch.empty_like(coefficients)
    _finish_gradient[triton.cdiv(channels, _CHANNELS), count](
        partial.sums, coefficients, grad_coef, grad_scale, grad_shift, partial.sums.shape[1], height * width, channels,
        grad_scale.stride(0), TILES=_TILES, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return grad_coef
