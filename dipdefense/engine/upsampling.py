"""Convolves an upsampled tensor at low resolution: a quarter of the arithmetic.

This is the costliest layer. Upsampling and convolution are linear and commute. So the 3×3 kernels may be applied to
the low-resolution tensor, with nine multiplications per low-resolution pixel instead of 36. The rest, shifting and
upsampling along each axis, is fixed. There are two forms, each the faster one at its sizes:

* **Small maps** (:func:`convolve_dense`). Along each axis, upsampling, reflection padding and a tap's shift are one
  fixed matrix; everything is a batched matrix product. Few calls, but the matrices' work grows with the map's side.
* **Large maps** (:class:`ConvolveTransposed`). Bilinear upsampling ×2 without aligned corners puts zeros between the
  pixels and filters with [1 3 3 1]/4 along each axis. The kernels on the zero-inserted tensor are a transposed
  convolution of stride 2; the fixed filter follows, a channel at a time. Replication of the low-resolution tensor's
  border comes out as replication of the upsampled one's, where the network reflects; the module ``interpolation``
  corrects the outermost rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.engine.constants import constant
from dipdefense.engine.folding import fold, unfold
from dipdefense.engine.interpolation import Strips, strip_gradients, strips, upsampling_matrix

_FILTER = (0.25, 0.75, 0.75, 0.25)
# Upsampling's Gram matrix along an axis: inner products of neighbouring columns of the upsampling matrix.
_GRAM = (0.375, 1.25, 0.375)
_RING = (1, 1, 1, 1)
# Pixels of a low-resolution map from which transposed convolution and filters beat matrix products on a CPU: measured
# in batches and alone, with 16 to 128 channels.
_LARGE = 48 * 48


@constant
def _tap_matrices(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Upsampling, shifted and reflected for each tap: (3, size, ceil(size / 2))."""
    reach = torch.arange(size, device=device) + torch.arange(-1, 2, device=device)[:, None]
    last = size - 1
    return upsampling_matrix(size, dtype, device)[last - (last - reach.abs()).abs()]


def convolve(low: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """See :func:`dipdefense.engine.ops.upsampled_convolution`."""
    if _favours_products(low):
        return _in_format_of(low, convolve_dense(low, weight, height, width))
    transposed = weight.permute(0, 1, 3, 4, 2).flip(3, 4).flatten(0, 1)
    return unfold(ConvolveTransposed.apply(fold(low), transposed, height, width, len(low)), len(low))


def _favours_products(low: Tensor) -> bool:
    """Whether dense matrices are the faster form.

    On a GPU, where nothing was measured, they are always taken.
    """
    return low.is_cuda or low.shape[2] * low.shape[3] < _LARGE


def convolve_dense(low: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """The same by matrix products."""
    count, _, rows, columns = low.shape
    outputs = weight.shape[3]
    vertical = _tap_matrices(height, low.dtype, low.device).transpose(0, 1).flatten(1)
    horizontal = _tap_matrices(width, low.dtype, low.device).transpose(1, 2)
    # A plane for every tap, vertical taps next to the rows so that one product sums over both.
    planes = torch.bmm(weight.flatten(2).transpose(1, 2), low.flatten(2)).view(-1, 3 * rows, columns)
    tall = torch.bmm(vertical.expand(len(planes), -1, -1), planes).view(count, 3, outputs * height, columns)
    left, centre, right = tall.unbind(1)
    out = torch.bmm(left, horizontal[0].expand(count, -1, -1))
    out = torch.baddbmm(out, centre, horizontal[1].expand(count, -1, -1))
    out = torch.baddbmm(out, right, horizontal[2].expand(count, -1, -1))
    return out.view(count, outputs, height, width)


class ConvolveTransposed(torch.autograd.Function):
    """The same by transposed convolution, filter and strips.

    ``low`` is (1, groups · in, rows, columns), and the weight is in transposed convolution's layout:
    (groups · in, out, 3, 3) with mirrored taps.
    """

    @staticmethod
    def forward(ctx: Any, low: Tensor, weight: Tensor, height: int, width: int, groups: int) -> Tensor:
        """Transposed convolution, filter, and the strips added along the border."""
        padded = F.pad(low, _RING, mode="replicate")
        ctx.save_for_backward(low, padded, weight)
        ctx.groups = groups
        spread = F.conv_transpose2d(padded, weight, stride=2, padding=1, groups=groups)
        # A crop has gaps, for which one image's channels would be taken for innermost.
        out = _in_format_of(low, _depthwise(spread, _FILTER)[..., :height, :width])
        ctx.borders = rows, columns = _borders(unfold(low, groups), weight, height, width)
        images = unfold(out, groups)
        for end in (0, 1):
            images[:, :, -end] += rows.values[:, end].mT
            images[..., -end] += columns.values[:, end].mT
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The adjoints of the same operations, from the last to the first."""
        low, padded, weight = ctx.saved_tensors
        height, width = grad.shape[2:]
        whole = F.pad(grad, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else grad
        spread = _depthwise(whole, _FILTER, padding=3)
        grad_padded, grad_weight, _ = torch.ops.aten.convolution_backward(
            spread, padded, weight, None, (2, 2), (1, 1), (1, 1), True, (0, 0), ctx.groups, (True, True, False)
        )
        grad_low = torch.ops.aten.replication_pad2d_backward(grad_padded, low, _RING)
        images, grad_images = unfold(grad, ctx.groups), unfold(grad_low, ctx.groups)
        taps = grad_weight.view(ctx.groups, -1, *weight.shape[1:])
        rows, columns = ctx.borders
        ends = (torch.stack([images[:, :, 0], images[:, :, -1]], 1), torch.stack([images[..., 0], images[..., -1]], 1))
        (grad_rows, above_below), (grad_columns, sides) = (
            strip_gradients(pair, end.mT) for pair, end in zip((rows, columns), ends, strict=True)
        )
        grad_images[:, :, :2] += grad_rows[:, :2].permute(0, 3, 1, 2)
        grad_images[:, :, -2:] += grad_rows[:, 2:].permute(0, 3, 1, 2)
        grad_images[..., :2] += grad_columns[:, :2].permute(0, 3, 2, 1)
        grad_images[..., -2:] += grad_columns[:, 2:].permute(0, 3, 2, 1)
        for end in (0, 1):
            taps.select(3, 2 - 2 * end).add_(above_below[:, end].mT)
            taps.select(4, 2 - 2 * end).add_(sides[:, end].mT)
        return grad_low, grad_weight, None, None, None


def _in_format_of(example: Tensor, x: Tensor) -> Tensor:
    """``x`` without gaps, its channels innermost where the example's are."""
    layout = torch.contiguous_format if example.is_contiguous() else torch.channels_last
    return x.contiguous(memory_format=layout)


def _depthwise(x: Tensor, taps: tuple[float, ...], *, padding: int = 0) -> Tensor:
    """Filter every channel of (1, C, H, W) with the same taps along both axes."""
    kernel = _separable(taps, x.dtype, x.device).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


@constant
def _separable(taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    row = torch.tensor(taps, dtype=dtype, device=device)
    return torch.outer(row, row)


def _borders(low: Tensor, weight: Tensor, height: int, width: int) -> tuple[Strips, Strips]:
    """The strips along top and bottom, and along the sides.

    ``low`` is (N, in, h, w), and ``weight`` is (N · in, out, 3, 3).
    """
    weight = weight.view(len(low), -1, *weight.shape[1:])
    rows = torch.cat([low[:, :, :2], low[:, :, -2:]], dim=2).permute(0, 2, 3, 1)
    columns = torch.cat([low[..., :2], low[..., -2:]], dim=3).permute(0, 3, 2, 1)
    above_below, sides = (_facing(weight, axis).transpose(3, 4) for axis in (3, 4))
    return (
        strips(rows, above_below, height, width, reflect=True),
        strips(columns, sides, width, height, reflect=False),
    )


def _facing(weight: Tensor, axis: int) -> Tensor:
    """The taps that reach over either border across an axis: (N, 2, in, out, 3).

    The first border comes before the last. The taps are mirrored, as they are in ``weight``.
    """
    return torch.stack([weight.select(axis, 2), weight.select(axis, 0)], dim=1)


class NormaliseUpsampled(torch.autograd.Function):
    """See :func:`dipdefense.engine.ops.normalise_upsampled`.

    The upsampled tensor is A L Bᵀ, so its sum of squares is ⟨L, G_A L G_B⟩ with the Gram matrices G = AᵀA.
    """

    @staticmethod
    def forward(ctx: Any, low: Tensor, scale: Tensor, height: int, width: int, eps: float) -> Tensor:
        """Moments of the upsampled tensor from ``low``, in the parameters' dtype."""
        exact = low.to(scale.dtype)
        gram = _gram_product(exact, height, width)
        share = _share(height, width, exact.dtype, exact.device)
        mean = (exact * share).sum(dim=(2, 3), keepdim=True)
        variance = ((exact - mean) * gram).sum(dim=(2, 3), keepdim=True) / (height * width)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(exact, gram, mean, inverse, scale)
        ctx.size = (height, width)
        return (exact * (inverse * scale[:, :, None, None])).to(low.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The variance's derivative is 2 (gram product / pixels − mean · share)."""
        low, gram, mean, inverse, scale = ctx.saved_tensors
        height, width = ctx.size
        factor = scale[:, :, None, None]
        pull = (grad * low).sum(dim=(2, 3), keepdim=True)
        grad_variance = -0.5 * pull * factor * inverse**3
        grad_low = grad * (inverse * factor)
        grad_low = grad_low.addcmul(gram, 2 * grad_variance / (height * width))
        grad_low -= 2 * grad_variance * mean * _share(height, width, low.dtype, low.device)
        return grad_low.to(grad.dtype), (pull * inverse)[:, :, 0, 0], None, None, None


@constant
def _gram_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = upsampling_matrix(size, dtype, device)
    return matrix.T @ matrix


@constant
def _share(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each low-resolution pixel's share in the upsampled mean: (h, w), summing to 1."""
    return torch.outer(*(upsampling_matrix(size, dtype, device).mean(dim=0) for size in (height, width)))


def _gram_product(low: Tensor, height: int, width: int) -> Tensor:
    """G_A L G_B for the upsampling to (height, width)."""
    if _favours_products(low):
        above, beside = (_gram_matrix(size, low.dtype, low.device) for size in (height, width))
        stacked = low.flatten(0, 1)
        return _in_format_of(low, (torch.bmm(above.expand(len(stacked), -1, -1), stacked) @ beside).view(low.shape))
    # As a filter: G is tridiagonal with the replicating border, less the pixel whose copy is cropped.
    folded = fold(low)
    product = _depthwise(F.pad(folded, _RING, mode="replicate"), _GRAM)
    if height % 2:
        product[:, :, -1] -= _gram_line(folded[:, :, -1])
    if width % 2:
        last = _gram_line(folded[..., -1])
        if height % 2:
            last[..., -1] -= folded[..., -1, -1]
        product[..., -1] -= last
    return unfold(product, len(low))


def _gram_line(line: Tensor) -> Tensor:
    near, centre, _ = _GRAM
    padded = F.pad(line, (1, 1), mode="replicate")
    return centre * line + near * (padded[..., :-2] + padded[..., 2:])
