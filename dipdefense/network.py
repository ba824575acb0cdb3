"""N independent skip networks as one module: "the original architecture" of Ulyanov et al. 2017, batched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipdefense import ops
from dipdefense.config import DIPConfig


class _Slot(NamedTuple):
    """One parameter of one network: its name, its shape, and how it starts."""

    name: str
    shape: tuple[int, ...]
    start: float | None  # a constant, or None for torch's default, uniform on ±1/sqrt(fan-in)


def _conv_norm(name: str, inputs: int, outputs: int, kernel: int) -> Iterator[_Slot]:
    yield _Slot(f"{name}_weight", (outputs, inputs, kernel, kernel), None)
    yield _Slot(f"{name}_scale", (outputs,), 1.0)
    yield _Slot(f"{name}_shift", (outputs,), 0.0)


def _slots(config: DIPConfig, image_channels: int, scales: int) -> Iterator[_Slot]:
    c, s = config.channels, config.skip_channels
    for scale in range(scales):
        inputs = config.input_channels if scale == 0 else c
        if s:
            yield from _conv_norm(f"skip{scale}", inputs, s, 1)
        yield from _conv_norm(f"down{scale}", inputs, c, 3)
        yield from _conv_norm(f"same{scale}", c, c, 3)
        yield _Slot(f"merge{scale}_scale", (s + c,), 1.0)
        yield from _conv_norm(f"up{scale}", s + c, c, 3)
        yield from _conv_norm(f"mix{scale}", c, c, 1)
    yield _Slot("draw_weight", (image_channels, c, 1, 1), None)
    yield _Slot("draw_bias", (image_channels,), 0.0)


class SkipNets(nn.Module):
    """One skip network an image; every parameter leads with the image axis, and no two images share anything.

    Parameters without effect are left out: a convolution's bias and the merged normalisation's shift add a constant
    per channel, which the next normalisation removes. Their gradient is zero in exact arithmetic, and Adam would only
    walk them about on rounding noise. At the paper's setting that leaves 2,214,591 of 2,217,831 parameters a network.

    Args:
        config: widths, slopes and so on.
        image_channels: channels to draw.
        scales: how often the resolution is halved.
        generators: one an image; each draws its network's start, as torch's own layers start: convolutions uniform
            on ±1/sqrt(fan-in), normalisations at scale 1 and shift 0.
        device, dtype: of the parameters.
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
        slots = list(_slots(config, image_channels, scales))
        drawn = sum(math.prod(slot.shape) for slot in slots if slot.start is None)
        # One draw an image for all its convolutions, then cut up in order.
        uniform = torch.empty(count, drawn, device=device, dtype=dtype)
        for row, generator in zip(uniform, generators, strict=True):
            row.uniform_(-1, 1, generator=generator)
        offset = 0
        for slot in slots:
            shape, size = (count, *slot.shape), math.prod(slot.shape)
            if slot.start is None:
                bound = 1 / math.sqrt(math.prod(slot.shape[1:]))
                value = bound * uniform[:, offset : offset + size].reshape(shape)
                offset += size
            else:
                value = torch.full(shape, slot.start, device=device, dtype=dtype)
            self.register_parameter(slot.name, nn.Parameter(value))

    def forward(self, noise: Tensor) -> Tensor:
        """Draw each image from its noise: (N, input_channels, H, W) to (N, image_channels, H, W) in [0, 1]."""
        features = self._scale(noise, 0)
        drawing = ops.convolution(features, self.get_parameter("draw_weight"))
        return torch.sigmoid(drawing + self.get_parameter("draw_bias")[:, :, None, None])

    def _scale(self, x: Tensor, scale: int) -> Tensor:
        """One scale: a skip branch beside everything coarser, merged and mixed."""
        deeper = self._block(f"same{scale}", self._block(f"down{scale}", x, stride=2))
        if scale + 1 < self.scales:
            deeper = self._scale(deeper, scale + 1)
        merged = ops.upsample(deeper, *x.shape[2:])
        if self.config.skip_channels:
            merged = torch.cat([self._block(f"skip{scale}", x), merged], dim=1)
        merged = ops.normalise(merged, self.get_parameter(f"merge{scale}_scale"), None, eps=self.config.norm_eps)
        return self._block(f"mix{scale}", self._block(f"up{scale}", merged))

    def _block(self, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
        """Convolution, normalisation, LeakyReLU."""
        y = ops.convolution(x, self.get_parameter(f"{name}_weight"), stride=stride)
        y = ops.normalise(
            y,
            self.get_parameter(f"{name}_scale"),
            self.get_parameter(f"{name}_shift"),
            eps=self.config.norm_eps,
        )
        return ops.activate(y, slope=self.config.leaky_slope)
