"""The operators of N independent networks, each applied to all images at once.

Activations are ``(N, channels, height, width)``, and the first axis of weights is that of the images too. Image *i*
meets only the weights with index *i*: the batch axis is folded into the channels and every convolution has N groups.
Batch normalisation takes its statistics per channel over height and width, which are then those of one image alone.

Operands have the activations' dtype; scales, shifts and statistics keep the parameters' (fp32 in use).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.engine import compiled, upsampling
from dipdefense.engine.folding import fold, unfold

# With fewer input channels a matrix product over patches beats a convolution: CPU and GPU kernels for groups are made
# for 16 and more, and a CPU's backward pass without groups runs at a quarter of its rate below that.
_NARROW = 16
_RING = (1, 1, 1, 1)


def convolution(x: Tensor, weight: Tensor, *, stride: int = 1, addend: Tensor | None = None) -> Tensor:
    """Convolve each image, padded by reflection, with its own kernels.

    Args:
        x: (N, in_channels, height, width).
        weight: (N, out_channels, in_channels, k, k) with k = 1, 3 or 5.
        stride: 1 or 2; 1 for 1×1 kernels.
        addend: in the result's shape, to be added to it.

    Returns:
        (N, out_channels, ceil(height / stride), ceil(width / stride)).
    """
    count, out_channels, in_channels, kernel, _ = weight.shape
    narrow = (out_channels < _NARROW and addend is None) if kernel == 1 else kernel == 3 and in_channels < _NARROW
    alone = count == 1 and _innermost(x if addend is None else addend)
    fused = alone and narrow and kernel == 3 and stride == 1 and addend is not None
    if fused and (kernels := compiled.current()) is not None:
        return compiled.ConvolveNarrow.apply(x, weight, addend, kernels)  # type: ignore[no-any-return]
    size, weight = x.shape[2:], weight.to(x.dtype)
    if alone and narrow:
        return _convolve_narrow(x, weight.squeeze(0), stride, addend)
    if not alone and (kernel == 1 or (kernel == 3 and in_channels < _NARROW)):
        height, width = (-(-side // stride) for side in size)
        patches = x.flatten(2) if kernel == 1 else _Patches.apply(x, stride)
        if addend is None:
            out = torch.bmm(weight.flatten(2), patches)
        else:
            out = torch.baddbmm(addend.flatten(2), weight.flatten(2), patches)
        return out.view(count, out_channels, height, width)
    if kernel > 1:
        ring = kernel // 2
        x = _Reflected.apply(x, ring) if x.is_cuda else F.pad(x, (ring,) * 4, mode="reflect")
    out = F.conv2d(x, weight.squeeze(0), stride=stride) if alone else unfold(_grouped(x, weight, stride), count)
    return out if addend is None else out + addend


def _grouped(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """One convolution with a group per image: (1, N · out, h, w).

    With one group torch takes another operator, which rounds differently. A single image gets a group of zeros beside
    it, so that it has the same result alone as in a batch.
    """
    count = len(weight)
    if count > 1:
        return F.conv2d(fold(x), weight.flatten(0, 1), stride=stride, groups=count)
    outputs = weight.shape[1]
    images = torch.cat([x, torch.zeros_like(x)], dim=1)
    kernels = torch.cat([weight, torch.zeros_like(weight)]).flatten(0, 1)
    return F.conv2d(images, kernels, stride=stride, groups=2)[:, :outputs]


def _innermost(x: Tensor) -> bool:
    return not x.is_contiguous()


def _convolve_narrow(x: Tensor, weight: Tensor, stride: int, addend: Tensor | None) -> Tensor:
    """Convolve one image with few channels in or out by a plain matrix product.

    Its passes are faster than a convolution's. The few channels stay outermost, where their normalisation is faster;
    the many come out innermost, and so do their gradients. No view of the image axis may be taken on the way: by the
    stride that it leaves, torch would take the gradients' channels for outermost and choose slow paths.
    """
    outputs, inputs, kernel, _ = weight.shape
    height, width = (-(-side // stride) for side in x.shape[2:])
    if kernel == 1:
        return torch.mm(weight.view(outputs, inputs), _pixels(x).mT).view(1, outputs, height, width)
    patches, taps = _Patches.apply(x, stride).view(9 * inputs, -1).mT, weight.view(outputs, -1).mT.contiguous()
    pixels = torch.mm(patches, taps) if addend is None else torch.addmm(_pixels(addend), patches, taps)
    return pixels.view(1, height, width, outputs).permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> Tensor:
    """(1, C, H, W) as (H · W, C): a view where the channels are innermost."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _Patches(torch.autograd.Function):
    """3×3 patches of images padded by reflection: (N, C, H, W) to (N, 9 · C, h · w).

    Each channel's nine taps follow one another.

    Like torch's unfold, in a third of the time: one strided copy forwards and nine additions backwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        """A strided view of the padded images, copied."""
        ctx.save_for_backward(x)
        ctx.stride = stride
        patches = F.pad(x, _RING, mode="reflect").unfold(2, 3, stride).unfold(3, 3, stride)
        ctx.size = patches.shape[2:4]
        return patches.permute(0, 1, 4, 5, 2, 3).reshape(len(x), 9 * x.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Add every tap's gradient to the pixel that the tap saw."""
        (x,) = ctx.saved_tensors
        count, channels, height, width = x.shape
        rows, columns = (ctx.stride * (side - 1) + 1 for side in ctx.size)
        taps = grad.view(count, channels, 3, 3, *ctx.size)
        padded = grad.new_zeros(count, channels, height + 2, width + 2)
        for dy in range(3):
            for dx in range(3):
                padded[:, :, dy : dy + rows : ctx.stride, dx : dx + columns : ctx.stride] += taps[:, :, dy, dx]
        if padded.is_cuda:
            return reflected_gradient(padded, 1), None
        return torch.ops.aten.reflection_pad2d_backward(padded, x, _RING), None


class _Reflected(torch.autograd.Function):
    """Padding by reflection whose gradient is added up in one order.

    (N, C, H, W) becomes (N, C, H + 2 ring, W + 2 ring).

    On a GPU torch's own gradient adds in no fixed order, so that a seed would not fix a reconstruction, and refuses to
    run under ``torch.use_deterministic_algorithms(True)``. Not yet run on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ring: int) -> Tensor:
        """Torch's own."""
        ctx.ring = ring
        return F.pad(x, (ring,) * 4, mode="reflect")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """See ``reflected_gradient``."""
        return reflected_gradient(grad, ctx.ring), None


def reflected_gradient(grad: Tensor, ring: int) -> Tensor:
    """The gradient of a tensor, from that of the tensor padded by reflection.

    The ring's rows, then its columns, are added to the pixels that they mirror.
    """
    for dim in (2, 3):
        size = grad.shape[dim] - 2 * ring
        inner = grad.narrow(dim, ring, size).clone()
        for line in range(1, ring + 1):
            inner.narrow(dim, line, 1).add_(grad.narrow(dim, ring - line, 1))
            inner.narrow(dim, size - 1 - line, 1).add_(grad.narrow(dim, ring + size - 1 + line, 1))
        grad = inner
    return grad


def normalise(x: Tensor, scale: Tensor, shift: Tensor | None, *, eps: float, slope: float | None = None) -> Tensor:
    """Batch normalisation in training mode, then LeakyReLU where a slope is given.

    Args:
        x: (N, channels, height, width); statistics are per image and channel.
        scale: (N, channels).
        shift: (N, channels), or none.
        eps: added to the biased variance.
        slope: of the LeakyReLU for negative values, or none for no activation.
    """
    if (kernels := compiled.current()) is not None:
        slope = 1.0 if slope is None else slope
        return compiled.Normalise.apply(x, scale, shift, eps, slope, kernels)  # type: ignore[no-any-return]
    shift = None if shift is None else shift.flatten()
    y = F.batch_norm(fold(x), None, None, scale.flatten(), shift, training=True, eps=eps)
    if slope is not None:
        # In place, since normalisation's backward pass needs its input and never its output. Before a view is taken:
        # with channels innermost, torch 2.15 on the CPU gets the gradient of an in-place change to a view wrong.
        y = F.leaky_relu_(y, slope)
    return unfold(y, len(x))


def normalise_upsampled(low: Tensor, scale: Tensor, *, height: int, width: int, eps: float) -> Tensor:
    """Scale ``low`` so that upsampling it yields a normalised tensor.

    That tensor is ``normalise`` of the upsampled ``low`` without a shift, up to a constant.

    Upsampling is linear, so the low-resolution tensor may be divided by the upsampled one's standard deviation. The
    mean is left in: it is a constant per channel, stays one through a convolution that pads by reflection, and is
    removed by the normalisation after that.

    Args:
        low: (N, channels, ceil(height / 2), ceil(width / 2)).
        scale: (N, channels).
        height: of the upsampled tensor, after cropping.
        width: of the upsampled tensor, after cropping.
        eps: added to the biased variance.
    """
    if (kernels := compiled.current()) is not None:
        return compiled.NormaliseUpsampled.apply(low, scale, height, width, eps, kernels)  # type: ignore[no-any-return]
    return upsampling.NormaliseUpsampled.apply(low, scale, height, width, eps)  # type: ignore[no-any-return]


def upsampled_convolution(low: Tensor, weight: Tensor, *, height: int, width: int) -> Tensor:
    """3×3 convolution, padded by reflection, of ``low`` upsampled bilinearly ×2.

    The upsampled tensor is cropped to (height, width) before the convolution.

    Args:
        low: (N, in_channels, ceil(height / 2), ceil(width / 2)), two rows and columns at least.
        weight: (N, in_channels, 3, out_channels, 3), horizontal taps before the outputs and vertical ones after.
        height: of the result.
        width: of the result.
    """
    return upsampling.convolve(low, weight.to(low.dtype), height, width)
