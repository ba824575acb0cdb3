"""The compiled kernels as functions of tensors.

See ``kernels.cpp`` for what each computes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

# P is a pointer, L a 64-bit integer, I an int, F a float and D a double, in the order of the arguments in C++.
_SIGNATURES = {
    "perturb": "PPPLLLFI",
    "normalise": "PPPPPLLIDFI",
    "normalise_backward": "PPPPPPPPLLIFI",
    "normalise_upsampled": "PPPPLLLLDI",
    "normalise_upsampled_backward": "PPPPPPLLLLI",
    "convolve_narrow": "PPPPLLLLI",
    "convolve_narrow_backward": "PPPPPLLLLI",
    "head": "PPPPPPPPPLLLLII",
}
_WHOLE_ITERATIONS = {"measure": "PPP", "iterate": "PPPPPPPPPLLPI"}
_TYPES = {
    "P": ctypes.c_void_p, "L": ctypes.c_int64, "I": ctypes.c_int, "F": ctypes.c_float, "D": ctypes.c_double,
}  # fmt: skip
_SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Head(NamedTuple):
    """The last layer's results, fp32 unless said otherwise.

    Attributes:
        outputs: (N, out, H, W) in [0, 1].
        losses: (N,) mean squared errors.
        grad_features: like the features, in their dtype; this and the others are gradients of the losses' sum.
        grad_weight: (N, out, channels).
        grad_bias: (N, out).
    """

    outputs: Tensor
    losses: Tensor
    grad_features: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


class Shape(ctypes.Structure):
    """The networks and their optimiser, as the kernels read them; see ``iterate.h``."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("height", "width", "image_channels", "input_channels", "channels", "skip_channels", "scales")
    ) + tuple(
        (name, ctypes.c_double)
        for name in (
            "input_deviation", "norm_eps", "leaky_slope", "learning_rate", "first_decay", "second_decay", "adam_eps",
        )
    )  # fmt: skip


class Kernels:
    """The functions of one compiled library.

    Activations are (N, C, H, W) in fp32 or bf16, contiguous, or of one image with the channels innermost. Everything
    else is fp32 and contiguous. Nothing is checked: a wrong shape reads or writes memory out of bounds, and a wrong
    layout gives wrong results.

    Args:
        path: of the compiled library.

    Raises:
        OSError, AttributeError: it cannot be loaded, or lacks a function.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._functions = {
            (name, dtype): _declared(library, f"{name}_{suffix}", signature)
            for name, signature in (_SIGNATURES | _WHOLE_ITERATIONS).items()
            for dtype, suffix in _SUFFIXES.items()
        }

    def perturb(self, fixed: Tensor, seeds: Tensor, iteration: int, deviation: float, out: Tensor) -> None:
        """Write ``fixed`` plus Gaussian noise to ``out``.

        The noise depends on an image's seed, the iteration and the position in memory (Philox 4×32-10).

        Args:
            fixed: (N, C, H, W) fp32, in the memory format of ``out``.
            seeds: (N,) int64.
            iteration: its number, from 1 on.
            deviation: the noise's standard deviation.
            out: like ``fixed``, in fp32 or bf16.
        """
        self._functions["perturb", out.dtype](
            fixed.data_ptr(), out.data_ptr(), seeds.data_ptr(), len(out), out[0].numel(), iteration, deviation,
            torch.get_num_threads(),
        )  # fmt: skip

    def normalise(
        self, x: Tensor, scale: Tensor, shift: Tensor | None, *, eps: float, slope: float
    ) -> tuple[Tensor, Tensor]:
        """Normalise each channel of each image, then LeakyReLU.

        Args:
            x: (N, C, H, W).
            scale: (N, C).
            shift: (N, C), or None.
            eps: added to the biased variance.
            slope: of the LeakyReLU for negative values; 1 for no activation.

        Returns:
            The result in ``x``'s memory format, and the statistics for :meth:`normalise_backward`.
        """
        out, statistics = torch.empty_like(x), scale.new_empty(2 * scale.numel(), dtype=torch.float64)
        self._functions["normalise", x.dtype](
            x.data_ptr(), out.data_ptr(), scale.data_ptr(), None if shift is None else shift.data_ptr(),
            statistics.data_ptr(), scale.numel(), x.shape[2] * x.shape[3], not x.is_contiguous(), eps, slope,
            torch.get_num_threads(),
        )  # fmt: skip
        return out, statistics

    def normalise_backward(
        self, x: Tensor, grad: Tensor, scale: Tensor, shift: Tensor | None, statistics: Tensor, *, slope: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients of ``x``, scale and shift, given that of the result.

        The given gradient has ``x``'s memory format.
        """
        grad_x, grad_scale = torch.empty_like(x), torch.empty_like(scale)
        grad_shift = None if shift is None else torch.empty_like(shift)
        self._functions["normalise_backward", x.dtype](
            x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), scale.data_ptr(),
            None if shift is None else shift.data_ptr(), statistics.data_ptr(), grad_scale.data_ptr(),
            None if grad_shift is None else grad_shift.data_ptr(), scale.numel(), x.shape[2] * x.shape[3],
            not x.is_contiguous(), slope, torch.get_num_threads(),
        )  # fmt: skip
        return grad_x, grad_scale, grad_shift

    def normalise_upsampled(
        self, low: Tensor, scale: Tensor, *, height: int, width: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Divide by the upsampled tensor's standard deviation, and multiply by the scale.

        Args:
            low: (N, C, ceil(height / 2), ceil(width / 2)).
            scale: (N, C).
            height: of the upsampled tensor.
            width: likewise.
            eps: added to the biased variance.

        Returns:
            The result in the memory format of ``low``, and the statistics for the backward pass.
        """
        out, statistics = torch.empty_like(low), scale.new_empty(2 * scale.numel(), dtype=torch.float64)
        self._functions["normalise_upsampled", low.dtype](
            low.data_ptr(), out.data_ptr(), scale.data_ptr(), statistics.data_ptr(), *_maps(low, height, width), eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return out, statistics

    def normalise_upsampled_backward(
        self, low: Tensor, grad: Tensor, scale: Tensor, statistics: Tensor, *, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """The gradients of ``low`` and scale, given that of the result.

        The given gradient has the memory format of ``low``.
        """
        grad_low, grad_scale = torch.empty_like(low), torch.empty_like(scale)
        self._functions["normalise_upsampled_backward", low.dtype](
            low.data_ptr(), grad.data_ptr(), grad_low.data_ptr(), scale.data_ptr(), statistics.data_ptr(),
            grad_scale.data_ptr(), *_maps(low, height, width), torch.get_num_threads(),
        )  # fmt: skip
        return grad_low, grad_scale

    def convolve_narrow(self, x: Tensor, weight: Tensor, addend: Tensor) -> Tensor:
        """3×3 convolution of one image's few channels, added to ``addend``.

        The channels are padded by reflection.

        Args:
            x: (1, in, H, W), contiguous, two rows and columns at least.
            weight: (1, out, in, 3, 3) fp32.
            addend: (1, out, H, W) with the channels innermost.

        Returns:
            (1, out, H, W) in the memory format of ``addend``.
        """
        out = torch.empty_like(addend)
        self._functions["convolve_narrow", x.dtype](
            x.data_ptr(), addend.data_ptr(), out.data_ptr(), weight.data_ptr(), weight.shape[2], weight.shape[1],
            *x.shape[2:], torch.get_num_threads(),
        )  # fmt: skip
        return out

    def convolve_narrow_backward(self, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of ``x`` and weight, given that of the result.

        The given gradient has the channels innermost.
        """
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        self._functions["convolve_narrow_backward", x.dtype](
            x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), weight.data_ptr(), grad_weight.data_ptr(),
            weight.shape[2], weight.shape[1], *x.shape[2:], torch.get_num_threads(),
        )  # fmt: skip
        return grad_x, grad_weight

    def head(self, features: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Head:
        """A 1×1 convolution, the sigmoid and each image's loss, with their gradients.

        All are computed in one pass. The loss is the mean squared error.

        Args:
            features: (N, channels, H, W).
            weight: (N, out, channels).
            bias: (N, out).
            target: (N, out, H, W).
        """
        count, outputs, channels = weight.shape
        head = Head(
            torch.empty_like(target), target.new_empty(count), torch.empty_like(features), torch.empty_like(weight),
            torch.empty_like(bias),
        )  # fmt: skip
        self._functions["head", features.dtype](
            features.data_ptr(), head.grad_features.data_ptr(), weight.data_ptr(), bias.data_ptr(), target.data_ptr(),
            head.outputs.data_ptr(), head.grad_weight.data_ptr(), head.grad_bias.data_ptr(), head.losses.data_ptr(),
            count, outputs, channels, target.shape[2] * target.shape[3], not features.is_contiguous(),
            torch.get_num_threads(),
        )  # fmt: skip
        return head

    def measure(self, shape: Shape, operands: torch.dtype) -> tuple[int, int]:
        """The number of one network's parameters, and of the floats that a worker needs.

        The parameters are counted with their padding.
        """
        counts = (ctypes.c_int64 * 2)()
        self._functions["measure", operands](
            ctypes.byref(shape), ctypes.byref(counts), ctypes.byref(counts, ctypes.sizeof(ctypes.c_int64))
        )
        return counts[0], counts[1]

    def iterate(
        self,
        shape: Shape,
        operands: torch.dtype,
        parameters: Tensor,
        moments: Tensor,
        fixed: Tensor,
        target: Tensor,
        outputs: Tensor,
        losses: Tensor,
        seeds: Tensor,
        iteration: int,
        space: Tensor,
        threads: int,
    ) -> None:
        """Do an iteration of N networks; everything is fp32 unless said otherwise.

        Args:
            shape: of every network.
            operands: fp32 or bf16: that of the convolutions' operands and results and of what is between them.
            parameters: (N, parameters), as :class:`dipdefense.native.iteration.Iteration` packs them.
            moments: (2, N, parameters): of Adam.
            fixed: (N, H, W, input_channels), the fixed noise.
            target: (N, C, H, W).
            outputs: like ``target``, to be written.
            losses: (N,), to be written.
            seeds: (N,) int64.
            iteration: its number, from 1 on.
            space: (M, floats), zero before the first iteration; M is the smaller of ``threads`` and N.
            threads: the same at every iteration.
        """
        self._functions["iterate", operands](
            ctypes.byref(shape), parameters.data_ptr(), moments[0].data_ptr(), moments[1].data_ptr(), fixed.data_ptr(),
            target.data_ptr(), outputs.data_ptr(), losses.data_ptr(), seeds.data_ptr(), len(target), iteration,
            space.data_ptr(), threads,
        )  # fmt: skip


def _declared(library: ctypes.CDLL, name: str, signature: str) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes, function.restype = [_TYPES[each] for each in signature], None
    return cast(Callable[..., None], function)


def _maps(low: Tensor, height: int, width: int) -> tuple[int, ...]:
    """The arguments that describe an upsampled tensor.

    The tensor is N·C maps of one channel or, with the channels innermost, one map of all channels.
    """
    count, channels = low.shape[:2]
    maps, inner = (count * channels, 1) if low.is_contiguous() else (1, channels)
    return maps, height, width, inner
