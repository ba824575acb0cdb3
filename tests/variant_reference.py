"""The variants' plain reference: one image, one network of torch's own layers.

The variants are as the published code has them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.config import DIPConfig
from dipdefense.engine.variants import VariantNets


class Lanczos(nn.Module):
    """Lanczos' filter at half resolution; border replicated, odd sides rounded up."""

    def __init__(self, support: int) -> None:
        super().__init__()
        self.support = support

    def forward(self, x: Tensor) -> Tensor:
        a, width = self.support, 4 * self.support
        # In old pixels from the new one's centre, which lies between the middle two.
        away = (torch.arange(width, dtype=x.dtype) - (width - 1) / 2) / 2
        row = torch.sinc(away) * torch.sinc(away / a)
        kernel = torch.outer(row, row) / row.sum() ** 2
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
        x = F.pad(x, [width // 2 - 1] * 4, mode="replicate")
        return torch.cat([F.conv2d(channel[:, None], kernel[None, None], stride=2) for channel in x.unbind(1)], dim=1)


def halving(config: DIPConfig) -> nn.Module:
    return {
        "stride": nn.Identity(),
        "average": nn.AvgPool2d(2, ceil_mode=True),
        "max": nn.MaxPool2d(2, ceil_mode=True),
        "lanczos2": Lanczos(2),
        "lanczos3": Lanczos(3),
    }[config.downsampling]


def activation(config: DIPConfig) -> nn.Module:
    known = {"leaky_relu": nn.LeakyReLU(config.leaky_slope), "swish": nn.SiLU(), "elu": nn.ELU(), "none": nn.Identity()}
    return known[config.activation]


class Block(nn.Sequential):
    """Reflection-padded convolution, any halving, batch normalisation, activation."""

    def __init__(self, config: DIPConfig, inputs: int, outputs: int, kernel: int, *, halve: bool = False) -> None:
        stride = 2 if halve and config.downsampling == "stride" else 1
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode="reflect"),
            halving(config) if halve else nn.Identity(),
            nn.BatchNorm2d(outputs, eps=config.norm_eps),
            activation(config),
        )


class Scale(nn.Module):
    def __init__(self, config: DIPConfig, inputs: int, deeper: nn.Module) -> None:
        super().__init__()
        c, s, kernel = config.channels, config.skip_channels, config.kernel_size
        self.skip = Block(config, inputs, s, 1) if s else None
        self.down = Block(config, inputs, c, kernel, halve=True)
        self.same = Block(config, c, c, kernel)
        self.deeper = deeper
        self.upsample = nn.Upsample(scale_factor=2, mode=config.upsampling)
        self.merge = nn.BatchNorm2d(s + c, eps=config.norm_eps)
        self.up = Block(config, s + c, c, kernel)
        self.mix = Block(config, c, c, 1) if config.pointwise else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.upsample(self.deeper(self.same(self.down(x))))[..., : x.shape[2], : x.shape[3]]
        if self.skip is not None:
            y = torch.cat([self.skip(x), y], dim=1)
        return self.mix(self.up(self.merge(y)))


class VariantNet(nn.Module):
    def __init__(self, config: DIPConfig, image_channels: int, scales: int) -> None:
        super().__init__()
        self.scales: list[Scale] = []
        deeper: nn.Module = nn.Identity()
        for scale in reversed(range(scales)):
            deeper = Scale(config, config.input_channels if scale == 0 else config.channels, deeper)
            self.scales.insert(0, deeper)
        self.body = deeper
        self.output = nn.Conv2d(config.channels, image_channels, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.sigmoid(self.output(self.body(noise)))

    def live_values(self, of: Callable[[nn.Parameter], Tensor | None] = lambda p: p) -> dict[str, Tensor]:
        """``of`` every parameter that has an effect, by the names of the batched network."""
        named = {"output_weight": of(self.output.weight), "output_bias": of(self.output.bias)}
        for index, scale in enumerate(self.scales):
            for name in ("skip", "down", "same", "up", "mix"):
                if isinstance(block := getattr(scale, name), Block):
                    named[f"{name}{index}_weight"] = of(block[0].weight)
                    named[f"{name}{index}_scale"] = of(block[2].weight)
                    named[f"{name}{index}_shift"] = of(block[2].bias)
            named[f"merge{index}_scale"] = of(scale.merge.weight)
        return named


def variant_like(networks: VariantNets, index: int, config: DIPConfig, image_channels: int) -> VariantNet:
    """The plain network with the weights of the batched network's image ``index``."""
    own = dict(networks.named_parameters())
    reference = VariantNet(config, image_channels, networks.scales).to(next(networks.parameters()))
    live = reference.live_values()
    assert live.keys() == own.keys()
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(own[name][index])
    return reference
