"""Whole iterations by the compiled kernels.

The kernels compute every image's noise, network, gradients and Adam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense import processor
from dipdefense.config import DIPConfig
from dipdefense.native.library import Kernels, Shape

# As in products.h: channels and parameters are padded with zeros to a multiple of the first, and a weight's outputs are
# beside each other in blocks of the second where it divides their number.
_NARROW, _WIDE = 16, 32
# More channels in a skip branch are faster by torch's convolutions.
_MOST_SKIP_CHANNELS = 16


def fits(config: DIPConfig, operands: torch.dtype) -> bool:
    """Whether these networks are fitted so, with operands of this dtype."""
    usual = not config.variants() and config.skip_channels <= _MOST_SKIP_CHANNELS
    return usual and (operands == torch.float32 or fast_in_bf16())


def fast_in_bf16() -> bool:
    """Whether the processor multiplies pairs of bf16 (AVX-512 BF16).

    One that has tiles (AMX) does not count: beside them these kernels have not been measured.
    """
    return "avx512_bf16" in processor.features() and "amx_bf16" not in processor.features()


class Iteration:
    """The networks of several images and their optimiser.

    Each call does the next iteration, in as many threads as torch has when the object is made.

    Args:
        kernels: compiled.
        weights: initial, by the names and in the shapes of :class:`dipdefense.engine.network.SkipNets`.
        fixed_noise: (N, input_channels, H, W) fp32.
        target: (N, C, H, W) fp32, contiguous: the images.
        seeds: of the fresh noise, one per image.
        config: one that :func:`fits`.
        scales: how often the resolution is halved.
        operands: fp32 or bf16.
        outputs: like ``target``; each iteration writes the networks' outputs there.
        losses: (N,) fp32, likewise.
    """

    def __init__(
        self,
        kernels: Kernels,
        weights: Mapping[str, Tensor],
        fixed_noise: Tensor,
        target: Tensor,
        seeds: Sequence[int],
        *,
        config: DIPConfig,
        scales: int,
        operands: torch.dtype,
        outputs: Tensor,
        losses: Tensor,
    ) -> None:
        self._kernels, self._target, self._outputs, self._losses = kernels, target, outputs, losses
        self._operands = operands
        self._deviation = config.noise_std
        self._fixed = fixed_noise.permute(0, 2, 3, 1).contiguous()
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device="cpu")
        self._shape = Shape(
            *target.shape[2:], target.shape[1], config.input_channels, config.channels, config.skip_channels, scales,
            config.noise_std, config.norm_eps, config.leaky_slope, config.learning_rate, *config.betas,
            config.adam_eps,
        )  # fmt: skip
        self._shapes = {name: weight.shape[1:] for name, weight in weights.items()}
        self._parameters = torch.cat([_packed(name, weight) for name, weight in weights.items()], dim=1)
        count, floats = kernels.measure(self._shape, operands)
        assert self._parameters.shape[1] == count
        self._moments = target.new_zeros(2, *self._parameters.shape)
        self._threads = torch.get_num_threads()
        self._space = target.new_zeros(min(len(target), self._threads), floats)
        self._iteration = 0

    def __call__(self) -> None:
        """Do the next iteration of every network."""
        self._iteration += 1
        self._kernels.iterate(
            self._shape, self._operands, self._parameters, self._moments, self._fixed, self._target, self._outputs,
            self._losses, self._seeds, self._iteration, self._space, self._threads,
        )  # fmt: skip

    def fresh_noise(self) -> Tensor:
        """(N, input_channels, H, W): what the last iteration added to the fixed noise."""
        noise = torch.empty_like(self._fixed)
        zeros = torch.zeros_like(self._fixed)
        self._kernels.perturb(zeros, self._seeds, self._iteration, self._deviation, noise)
        return noise.permute(0, 3, 1, 2)

    def weights(self, rows: Tensor) -> dict[str, Tensor]:
        """Copies of some networks' parameters as they are now, by name."""
        sizes = [_size(name, shape) for name, shape in self._shapes.items()]
        parts = torch.split(self._parameters[rows], sizes, dim=1)
        return {
            name: _unpacked(name, part, shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }


def _whole(count: int) -> int:
    return -(-count // _NARROW) * _NARROW


def _block(outputs: int) -> int:
    """Outputs beside each other in memory."""
    return _NARROW if outputs % _WIDE else _WIDE


def _ordered(name: str, weight: Tensor) -> Tensor:
    """A convolution's weight, in any of the networks' layouts, as (N, out, in, k, k)."""
    if name.startswith("up") and "skip" not in name:
        return weight.permute(0, 3, 1, 4, 2)
    return weight


def _blocked(name: str) -> bool:
    return name.endswith("_weight") and not name.startswith(("up_skip", "output"))


def _size(name: str, shape: Sequence[int]) -> int:
    return _packed(name, torch.empty(1, *shape, device="meta")).shape[1]


def _packed(name: str, weight: Tensor) -> Tensor:
    """(N, …) to (N, a multiple of 16): how the kernels read a parameter."""
    if _blocked(name):
        weight = _ordered(name, weight)
        count, outputs, inputs, kernel, _ = weight.shape
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, _whole(outputs) - outputs))
        block = _block(weight.shape[1])
        weight = weight.reshape(count, -1, block, inputs, kernel, kernel).permute(0, 1, 4, 5, 3, 2)
    elif name.startswith("up_skip"):
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, _whole(weight.shape[1]) - weight.shape[1]))
    elif name == "output_weight":
        weight = F.pad(weight.flatten(2), (0, _whole(weight.shape[2]) - weight.shape[2]))
    flat = weight.flatten(1)
    return F.pad(flat, (0, _whole(flat.shape[1]) - flat.shape[1]))


def _unpacked(name: str, packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`_packed`, by what it does to the numbers' places."""
    count = torch.Size(shape).numel()
    numbers = torch.arange(1, count + 1, dtype=torch.int64, device="cpu")
    places = _packed(name, numbers.view(1, *shape))[0]
    flat = packed.new_empty(len(packed), count)
    used = places > 0
    flat[:, places[used] - 1] = packed[:, used]
    return flat.view(len(packed), *shape)
