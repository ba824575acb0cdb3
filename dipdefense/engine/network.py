"""N independent skip networks as one module.

They are "the original architecture" of Ulyanov et al. 2017, batched. The module ``variants`` has those with other
kernels, resampling or activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipdefense.config import DIPConfig
from dipdefense.engine import ops


class Slot(NamedTuple):
    """One parameter of one network: its name, its shape, and its initial values."""

    name: str
    shape: tuple[int, ...]
    initial: float | None = None  # a constant, or None for torch's default, uniform on ±1/sqrt(fan_in)
    fan_in: int = 1


def conv_norm(name: str, inputs: int, outputs: int, kernel: int) -> Iterator[Slot]:
    """The parameters of a convolution and of the normalisation after it."""
    yield Slot(f"{name}_weight", (outputs, inputs, kernel, kernel), fan_in=inputs * kernel**2)
    yield from norm(name, outputs)


def norm(name: str, channels: int) -> Iterator[Slot]:
    """The parameters of a normalisation."""
    yield Slot(f"{name}_scale", (channels,), initial=1.0)
    yield Slot(f"{name}_shift", (channels,), initial=0.0)


def output(channels: int, image_channels: int) -> Iterator[Slot]:
    """The parameters of the last convolution."""
    yield Slot("output_weight", (image_channels, channels, 1, 1), fan_in=channels)
    yield Slot("output_bias", (image_channels,), fan_in=channels)


class Networks(nn.Module):
    """The parameters of N networks, with the image axis first.

    No two images share anything.

    Args:
        config: widths, slopes and so on.
        image_channels: channels of the output.
        scales: how often the resolution is halved.
        generators: one per image, for its network's initial weights, distributed as torch's own layers':
            convolutions and the last one's bias uniform on ±1/sqrt(fan-in), normalisations at scale 1 and shift 0.
        device, dtype: of the parameters; float64 is for comparisons with a reference.
    """

    def __init__(
        self,
        config: DIPConfig,
        *,
        image_channels: int,
        scales: int,
        generators: Sequence[torch.Generator],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config, self.scales = config, scales
        count = len(generators)
        slots = list(self._slots(image_channels))
        random = sum(math.prod(slot.shape) for slot in slots if slot.initial is None)
        # One call per image for all its convolutions, then cut up in order.
        uniform = torch.empty(count, random, device=device, dtype=dtype)
        for row, generator in zip(uniform, generators, strict=True):
            row.uniform_(-1, 1, generator=generator)
        offset = 0
        for slot in slots:
            shape, size = (count, *slot.shape), math.prod(slot.shape)
            if slot.initial is None:
                value = uniform[:, offset : offset + size].reshape(shape) / math.sqrt(slot.fan_in)
                offset += size
            else:
                value = torch.full(shape, slot.initial, device=device, dtype=dtype)
            self.register_parameter(slot.name, nn.Parameter(value))

    def _slots(self, image_channels: int) -> Iterator[Slot]:
        """The parameters of one network."""
        raise NotImplementedError

    def _scale(self, x: Tensor, scale: int) -> Tensor:
        """One scale: a skip branch beside everything coarser, merged and mixed."""
        raise NotImplementedError

    def forward(self, noise: Tensor) -> Tensor:
        """The outputs, (N, image_channels, H, W) in [0, 1], for this noise.

        The noise is (N, input_channels, H, W). The convolutions' operands are in its dtype, the last one's in the
        parameters'.
        """
        weight, bias = self.get_parameter("output_weight"), self.get_parameter("output_bias")
        features = self.features(noise).to(weight.dtype)
        return torch.sigmoid(ops.convolution(features, weight) + bias[:, :, None, None])

    def features(self, noise: Tensor) -> Tensor:
        """The last convolution's input, (N, channels, H, W) in the noise's dtype."""
        return self._scale(noise, 0)


class SkipNets(Networks):
    """One skip network per image.

    It computes the published network's function, with two differences in its parameters. The merged convolution's
    kernels are kept apart for the skip branch and for the deeper one, the latter in the layout of
    ``ops.upsampled_convolution``. And parameters without effect are left out: a convolution's bias and the merged
    normalisation's shift add a constant per channel, which the next normalisation removes. Their gradient is zero in
    exact arithmetic, and Adam would only move them by rounding noise. At the paper's setting, 2,214,591 of 2,217,831
    parameters per network remain.
    """

    def _slots(self, image_channels: int) -> Iterator[Slot]:
        c, s = self.config.channels, self.config.skip_channels
        merged_fan_in = 9 * (s + c)
        for scale in range(self.scales):
            inputs = self.config.input_channels if scale == 0 else c
            if s:
                yield from conv_norm(f"skip{scale}", inputs, s, 1)
                yield Slot(f"merge_skip{scale}_scale", (s,), initial=1.0)
                yield Slot(f"up_skip{scale}_weight", (c, s, 3, 3), fan_in=merged_fan_in)
            yield from conv_norm(f"down{scale}", inputs, c, 3)
            yield from conv_norm(f"same{scale}", c, c, 3)
            yield Slot(f"merge{scale}_scale", (c,), initial=1.0)
            yield Slot(f"up{scale}_weight", (c, 3, c, 3), fan_in=merged_fan_in)
            yield from norm(f"up{scale}", c)
            yield from conv_norm(f"mix{scale}", c, c, 1)
        yield from output(c, image_channels)

    def _scale(self, x: Tensor, scale: int) -> Tensor:
        height, width = x.shape[2:]
        eps = self.config.norm_eps
        deeper = self._block(f"same{scale}", self._block(f"down{scale}", x, stride=2))
        if scale + 1 < self.scales:
            deeper = self._scale(deeper, scale + 1)
        deeper = ops.normalise_upsampled(
            deeper, self.get_parameter(f"merge{scale}_scale"), height=height, width=width, eps=eps
        )
        merged = ops.upsampled_convolution(deeper, self.get_parameter(f"up{scale}_weight"), height=height, width=width)
        if self.config.skip_channels:
            skip = self._block(f"skip{scale}", x)
            skip = ops.normalise(skip, self.get_parameter(f"merge_skip{scale}_scale"), None, eps=eps)
            merged = ops.convolution(skip, self.get_parameter(f"up_skip{scale}_weight"), addend=merged)
        return self._block(f"mix{scale}", self._norm_act(f"up{scale}", merged))

    def _block(self, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
        """Convolution, normalisation, LeakyReLU."""
        return self._norm_act(name, ops.convolution(x, self.get_parameter(f"{name}_weight"), stride=stride))

    def _norm_act(self, name: str, x: Tensor) -> Tensor:
        scale, shift = self.get_parameter(f"{name}_scale"), self.get_parameter(f"{name}_shift")
        return ops.normalise(x, scale, shift, eps=self.config.norm_eps, slope=self.config.leaky_slope)
