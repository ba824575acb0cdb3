"""The compiled kernels as autograd functions; :func:`using` switches them on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from dipdefense.native.library import Kernels

_current: ContextVar[Kernels | None] = ContextVar("kernels", default=None)


@contextlib.contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Until the block ends, this thread's operators use the kernels.

    So do the operators' backward passes, even after the block.
    """
    token = _current.set(kernels)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Kernels | None:
    """The kernels in use, or None for torch's operators."""
    return _current.get()


class Normalise(torch.autograd.Function):
    """See :func:`dipdefense.engine.ops.normalise`; a slope of 1 is no activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, eps: float, slope: float, kernels: Kernels
    ) -> Tensor:
        """The statistics in one pass, normalisation and activation in another.

        For the backward pass the input and the statistics are kept, not the output.
        """
        x = x.contiguous(memory_format=_format_of(x))
        out, ctx.statistics = kernels.normalise(x, scale, shift, eps=eps, slope=slope)
        ctx.save_for_backward(x, scale, shift)
        ctx.slope, ctx.kernels = slope, kernels
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        """The gradients through activation and normalisation, likewise in two passes."""
        x, scale, shift = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_format_of(x))
        gradients = ctx.kernels.normalise_backward(x, grad, scale, shift, ctx.statistics, slope=ctx.slope)
        return (*gradients, None, None, None)


class NormaliseUpsampled(torch.autograd.Function):
    """See :func:`dipdefense.engine.ops.normalise_upsampled`."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, scale: Tensor, height: int, width: int, eps: float, kernels: Kernels) -> Tensor:
        """The statistics in one pass, the result in another."""
        low = low.contiguous(memory_format=_format_of(low))
        out, ctx.statistics = kernels.normalise_upsampled(low, scale, height=height, width=width, eps=eps)
        ctx.height, ctx.width, ctx.kernels = height, width, kernels
        ctx.save_for_backward(low, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        """The gradients, likewise in two passes."""
        low, scale = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_format_of(low))
        gradients = ctx.kernels.normalise_upsampled_backward(
            low, grad, scale, ctx.statistics, height=ctx.height, width=ctx.width
        )
        return (*gradients, None, None, None, None)


class ConvolveNarrow(torch.autograd.Function):
    """3×3 convolution of one image's few channels, plus the addend.

    See :func:`dipdefense.engine.ops.convolution`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, addend: Tensor, kernels: Kernels) -> Tensor:
        """No patches are written; the weight stays fp32."""
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.kernels = kernels
        return kernels.convolve_narrow(x, weight, addend.contiguous(memory_format=torch.channels_last))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The addend's gradient is the result's."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        return (*ctx.kernels.convolve_narrow_backward(x, weight, grad), grad, None)


def _format_of(x: Tensor) -> torch.memory_format:
    """Channels innermost where ``x`` is one image stored so, else the usual format."""
    innermost = len(x) == 1 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if innermost else torch.contiguous_format
