"""The compiled kernels under autograd, where :func:`using` says that they are to be used."""

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
    """Until the block ends, this thread's operators take the kernels; gradients do wherever they are computed."""
    token = _current.set(kernels)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Kernels | None:
    """The kernels to take, or none for torch's operators."""
    return _current.get()


class Normalise(torch.autograd.Function):
    """See :func:`dipdefense.engine.ops.normalise`; a slope of 1 is no activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, eps: float, slope: float, kernels: Kernels
    ) -> Tensor:
        """Both in one pass behind the statistics'; only the input is kept."""
        x = x.contiguous(memory_format=_format_of(x))
        out, ctx.statistics = kernels.normalise(x, scale, shift, eps=eps, slope=slope)
        ctx.save_for_backward(x, scale, shift)
        ctx.slope, ctx.kernels = slope, kernels
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        """The activation's and the normalisation's gradient likewise."""
        x, scale, shift = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_format_of(x))
        gradients = ctx.kernels.normalise_backward(x, grad, scale, shift, ctx.statistics, slope=ctx.slope)
        return (*gradients, None, None, None)


def _format_of(x: Tensor) -> torch.memory_format:
    """Channels innermost only where they are so in one image alone, the other layout of the kernels."""
    innermost = len(x) == 1 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if innermost else torch.contiguous_format
