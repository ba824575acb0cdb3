"""The costliest layer at a quarter of its arithmetic: convolving an upsampled tensor at low resolution.

Bilinear upsampling ×2 (without aligned corners) puts zeros between the pixels and filters with [1 3 3 1]/4 along each
axis. Convolutions commute, so the 3×3 kernels may come first: on the zero-inserted tensor they are a transposed
convolution of stride 2, nine multiplications a low-resolution pixel instead of 36. The fixed filter follows, a channel
at a time.

With the low-resolution tensor padded by replication, the result is the convolution of the upsampled tensor padded by
replication too. The network pads by reflection. The two paddings differ on a ring one pixel wide, so only the outermost
rows and columns of the result need a correction, the kernels' outer taps applied to that difference. Per axis write
R for the reflecting extension and P for the replicating one; then

    R⊗R − P⊗P = (R − P)⊗R + P⊗(R − P),

which is a strip along the top and bottom, extended by reflection, and one along the sides, extended by replication.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FILTER = (0.25, 0.75, 0.75, 0.25)
# Upsampling's Gram matrix per axis: inner products of neighbouring columns of the upsampling operator.
_GRAM = (0.375, 1.25, 0.375)
_RING = (1, 1, 1, 1)


def _depthwise(x: Tensor, taps: tuple[float, ...], *, padding: int = 0) -> Tensor:
    """Filter every channel of (N, C, H, W) with the same separable taps along both axes."""
    row = x.new_tensor(taps)
    channels = x.shape[0] * x.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, -1, -1)
    return unfold(F.conv2d(fold(x), kernel, padding=padding, groups=channels), len(x))


def fold(x: Tensor) -> Tensor:
    """Images into channels: (N, C, H, W) to (1, N·C, H, W). One image stays as it is and keeps its memory format."""
    return x if len(x) == 1 else x.flatten(0, 1)[None]


def unfold(x: Tensor, count: int) -> Tensor:
    """Channels back into images: (1, N·C, H, W) to (N, C, H, W)."""
    return x if count == 1 else x.view(count, -1, *x.shape[2:])


class UpsampledConvolution(torch.autograd.Function):
    """See :func:`dipdefense.ops.upsampled_convolution`."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
        """Transposed convolution, filter, and the strips added along the border."""
        padded = F.pad(low, _RING, mode="replicate")
        ctx.save_for_backward(low, padded, weight)
        spread = F.conv_transpose2d(fold(padded), weight.flatten(0, 1), stride=2, padding=1, groups=len(low))
        out = _depthwise(unfold(spread, len(low)), _FILTER)[..., :height, :width]
        top, bottom, left, right = _strips(low, _outer_taps(weight), height, width)
        out[:, :, 0] += top
        out[:, :, -1] += bottom
        out[..., 0] += left
        out[..., -1] += right
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The same steps from the last to the first."""
        low, padded, weight = ctx.saved_tensors
        height, width = grad.shape[2:]
        whole = F.pad(grad, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else grad
        grad_padded, grad_weight, _ = torch.ops.aten.convolution_backward(
            fold(_depthwise(whole, _FILTER, padding=3)),
            fold(padded),
            weight.flatten(0, 1),
            None,
            (2, 2),
            (1, 1),
            (1, 1),
            True,
            (0, 0),
            len(low),
            (True, True, False),
        )
        grad_padded, grad_weight = unfold(grad_padded, len(low)), grad_weight.view_as(weight)
        grad_low = torch.ops.aten.replication_pad2d_backward(grad_padded, low, _RING)
        with torch.enable_grad():
            edges = low.detach().requires_grad_()
            taps = [tap.detach().requires_grad_() for tap in _outer_taps(weight)]
            strips = _strips(edges, taps, height, width)
        sides = (grad[:, :, 0], grad[:, :, -1], grad[..., 0], grad[..., -1])
        grad_edges, *grad_taps = torch.autograd.grad(strips, (edges, *taps), sides)
        for tap, grad_tap in zip(_outer_taps(grad_weight), grad_taps, strict=True):
            tap += grad_tap
        return grad_low.add_(grad_edges), grad_weight, None, None


def _outer_taps(weight: Tensor) -> list[Tensor]:
    """The taps (N, in, out, 3) that reach over the top, bottom, left and right border, in transposed layout."""
    return [weight[..., 2, :], weight[..., 0, :], weight[..., 2], weight[..., 0]]


def _strips(low: Tensor, taps: list[Tensor], height: int, width: int) -> list[Tensor]:
    """What reflection adds to replication along the top and bottom (N, out, width) and the sides (N, out, height)."""
    rows = _beyond(low[:, :, :2], low[:, :, -2:].flip(2), height)
    columns = _beyond(low[..., :2].transpose(2, 3), low[..., -2:].flip(3).transpose(2, 3), width)
    reflected = [F.pad(_upsample_line(line)[..., :width], (1, 1), mode="reflect") for line in rows]
    replicated = [F.pad(_upsample_line(line), (1, 1), mode="replicate")[..., : height + 2] for line in columns]
    return [_convolve_line(line, tap) for line, tap in zip(reflected + replicated, taps, strict=True)]


def _beyond(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Reflection minus replication one pixel beyond either end, from the two outermost lines (N, C, 2, length).

    Upsampled pixel 1 is (3 a + b)/4 of the outermost lines a and b, and replication repeats a. At the far end the
    same holds for an even size; an odd one is cropped by a pixel, so that reflection finds (a + 3 b)/4 there.
    """
    step, step_far = (pair[:, :, 1] - pair[:, :, 0] for pair in (first, last))
    return step / 4, step_far * (0.75 if size % 2 else 0.25)


def _upsample_line(line: Tensor) -> Tensor:
    return F.interpolate(line, scale_factor=2, mode="linear", align_corners=False)


def _convolve_line(line: Tensor, tap: Tensor) -> Tensor:
    """Valid 1-D convolution of (N, in, length + 2) with mirrored taps (N, in, out, 3)."""
    patches = torch.cat([line[..., 2:], line[..., 1:-1], line[..., :-2]], dim=1)
    return torch.bmm(tap.permute(0, 2, 3, 1).flatten(2), patches)


class NormaliseUpsampled(torch.autograd.Function):
    """See :func:`dipdefense.ops.normalise_upsampled`.

    The upsampled tensor is A L Bᵀ, so its sum of squares is ⟨L, G_A L G_B⟩ with the tridiagonal Gram matrix G = AᵀA,
    which is a 3-tap filter over the replicated tensor, less the outermost pixel where an odd size cropped its copy.
    """

    @staticmethod
    def forward(ctx: Any, low: Tensor, scale: Tensor, height: int, width: int, eps: float) -> Tensor:
        """Moments of the upsampled tensor from the low-resolution one, in the parameters' dtype."""
        exact = low.to(scale.dtype)
        gram = _gram_product(exact, height, width)
        # Columns of A add up to 2, the last to 1 where its copy is cropped: each pixel's share in the upsampled mean.
        share = _share(exact, height, width)
        mean = (exact * share).sum(dim=(2, 3), keepdim=True) if height % 2 or width % 2 else exact.mean((2, 3), True)
        variance = ((exact - mean) * gram).sum(dim=(2, 3), keepdim=True) / (height * width)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(exact, gram, mean, inverse, scale)
        ctx.size = (height, width)
        return (exact * (inverse * scale[:, :, None, None])).to(low.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The variance's derivative is 2 (gram product − mean · share · pixels) / pixels."""
        low, gram, mean, inverse, scale = ctx.saved_tensors
        height, width = ctx.size
        factor = scale[:, :, None, None]
        pull = (grad * low).sum(dim=(2, 3), keepdim=True)
        grad_variance = -0.5 * pull * factor * inverse**3
        grad_low = grad * (inverse * factor)
        grad_low = grad_low.addcmul(gram, 2 * grad_variance / (height * width))
        grad_low -= 2 * grad_variance * mean * _share(low, height, width)
        return grad_low.to(grad.dtype), (pull * inverse)[:, :, 0, 0], None, None, None


def _gram_product(low: Tensor, height: int, width: int) -> Tensor:
    """G_A L G_B for the upsampling to (height, width)."""
    product = _depthwise(F.pad(low, _RING, mode="replicate"), _GRAM)
    if height % 2:
        product[:, :, -1] -= _gram_line(low[:, :, -1])
    if width % 2:
        last = _gram_line(low[..., -1])
        if height % 2:
            last[..., -1] -= low[..., -1, -1]
        product[..., -1] -= last
    return product


def _gram_line(line: Tensor) -> Tensor:
    near, centre, _ = _GRAM
    padded = F.pad(line, (1, 1), mode="replicate")
    return centre * line + near * (padded[..., :-2] + padded[..., 2:])


def _share(low: Tensor, height: int, width: int) -> Tensor:
    """Each low-resolution pixel's share in the upsampled mean: (h, w), adding up to 1."""
    shares = []
    for size, pixels in ((height, low.shape[2]), (width, low.shape[3])):
        share = low.new_full((pixels,), 2 / size)
        share[-1] -= (size % 2) / size
        shares.append(share)
    return torch.outer(*shares)
