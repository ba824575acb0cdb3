"""The plain reference: one image, one network of torch's own layers, one loop.

Ulyanov et al. 2017 give the network (their restoration default), Kattamis et al. 2019 its use. Nothing here is
batched, folded or left out, and nothing is shared with the package but the configuration's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.config import DIPConfig
from dipdefense.engine.network import SkipNets


class Block(nn.Sequential):
    """Convolution with reflection padding, batch normalisation, LeakyReLU."""

    def __init__(self, config: DIPConfig, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode="reflect"),
            nn.BatchNorm2d(outputs, eps=config.norm_eps),
            nn.LeakyReLU(config.leaky_slope),
        )


class Scale(nn.Module):
    def __init__(self, config: DIPConfig, inputs: int, deeper: nn.Module | None) -> None:
        super().__init__()
        c, s = config.channels, config.skip_channels
        self.skip = Block(config, inputs, s, 1) if s else None
        self.down = Block(config, inputs, c, 3, stride=2)
        self.same = Block(config, c, c, 3)
        self.deeper = deeper
        self.merge = nn.BatchNorm2d(s + c, eps=config.norm_eps)
        self.up = Block(config, s + c, c, 3)
        self.mix = Block(config, c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.same(self.down(x))
        if self.deeper is not None:
            y = self.deeper(y)
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = y[..., : x.shape[2], : x.shape[3]]
        if self.skip is not None:
            y = torch.cat([self.skip(x), y], dim=1)
        return self.mix(self.up(self.merge(y)))


class ReferenceNet(nn.Module):
    def __init__(self, config: DIPConfig, image_channels: int, scales: int) -> None:
        super().__init__()
        body: nn.Module | None = None
        for scale in reversed(range(scales)):
            body = Scale(config, config.input_channels if scale == 0 else config.channels, body)
        self.body = body
        self.output = nn.Conv2d(config.channels, image_channels, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.sigmoid(self.output(self.body(noise)))

    def scales(self) -> list[Scale]:
        scales, scale = [], self.body
        while scale is not None:
            scales.append(scale)
            scale = scale.deeper
        return scales

    def live_values(self, of: Callable[[nn.Parameter], Tensor | None] = lambda p: p) -> dict[str, Tensor]:
        """``of`` every parameter with effect, in the batched network's names and layouts."""
        named: dict[str, Tensor] = {}
        for index, scale in enumerate(self.scales()):
            skips = 0 if scale.skip is None else scale.skip[0].out_channels
            for name in ("skip", "down", "same", "up", "mix"):
                block = getattr(scale, name)
                if block is not None:
                    named[f"{name}{index}_weight"] = of(block[0].weight)
                    named[f"{name}{index}_scale"] = of(block[1].weight)
                    named[f"{name}{index}_shift"] = of(block[1].bias)
            if skips:
                named[f"merge_skip{index}_scale"] = of(scale.merge.weight)[:skips]
                named[f"up_skip{index}_weight"] = of(scale.up[0].weight)[:, :skips]
            named[f"merge{index}_scale"] = of(scale.merge.weight)[skips:]
            named[f"up{index}_weight"] = of(scale.up[0].weight)[:, skips:].permute(1, 3, 0, 2)
        named["output_weight"] = of(self.output.weight)
        named["output_bias"] = of(self.output.bias)
        return named

    def dead_parameters(self) -> list[nn.Parameter]:
        """Those without effect: biases before normalisation and the merges' shifts."""
        blocks = [block for scale in self.scales() for block in scale.children() if isinstance(block, Block)]
        return [block[0].bias for block in blocks] + [scale.merge.bias for scale in self.scales()]


def reference_like(networks: SkipNets, index: int, config: DIPConfig, image_channels: int) -> ReferenceNet:
    """The plain network with the weights of the batched network's image ``index``."""
    own = dict(networks.named_parameters())
    reference = ReferenceNet(config, image_channels, networks.scales).to(next(networks.parameters()))
    with torch.no_grad():
        for scale, plain in enumerate(reference.scales()):
            for name in ("skip", "down", "same", "up", "mix"):
                block = getattr(plain, name)
                if block is not None and f"{name}{scale}_scale" in own:
                    block[1].weight.copy_(own[f"{name}{scale}_scale"][index])
                    block[1].bias.copy_(own[f"{name}{scale}_shift"][index])
                if block is not None and name != "up":
                    block[0].weight.copy_(own[f"{name}{scale}_weight"][index])
            deep = own[f"up{scale}_weight"][index].permute(2, 0, 3, 1)
            merge = own[f"merge{scale}_scale"][index]
            if plain.skip is not None:
                deep = torch.cat([own[f"up_skip{scale}_weight"][index], deep], dim=1)
                merge = torch.cat([own[f"merge_skip{scale}_scale"][index], merge])
            plain.up[0].weight.copy_(deep)
            plain.merge.weight.copy_(merge)
        reference.output.weight.copy_(own["output_weight"][index])
        reference.output.bias.copy_(own["output_bias"][index])
    assert reference.live_values().keys() == own.keys()
    return reference


@dataclass
class ReferenceRun:
    outputs: list[Tensor]
    losses: list[float]


def reference_fit(
    image: Tensor,
    *,
    iterations: int,
    config: DIPConfig,
    net: ReferenceNet,
    noise: Tensor,
    fresh: list[Tensor],
) -> ReferenceRun:
    """The published loop for one image (C, H, W).

    The noise is given, so that another loop can be given the same.
    """
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.adam_eps)
    run = ReferenceRun([], [])
    for iteration in range(iterations):
        optimiser.zero_grad()
        output = net((noise + fresh[iteration])[None])
        loss = F.mse_loss(output, image[None])
        loss.backward()
        optimiser.step()
        run.outputs.append(output.detach()[0])
        run.losses.append(loss.item())
    return run
