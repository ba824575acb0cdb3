"""The plain reference: one image, one network of torch's own layers, one loop, as the paper describes them.

Ulyanov et al. 2017 give the network (their restoration default), Kattamis et al. 2019 its use. Nothing here is
batched, folded or left out, and nothing is shared with the package but the configuration's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.config import DIPConfig
from dipdefense.network import SkipNets


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
        self.draw = nn.Conv2d(config.channels, image_channels, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return torch.sigmoid(self.draw(self.body(noise)))

    def scales(self) -> list[Scale]:
        scales, scale = [], self.body
        while scale is not None:
            scales.append(scale)
            scale = scale.deeper
        return scales

    def live_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that have an effect, by the names that the batched network gives them."""
        named: dict[str, nn.Parameter] = {}
        for index, scale in enumerate(self.scales()):
            for name in ("skip", "down", "same", "up", "mix"):
                block = getattr(scale, name)
                if block is not None:
                    named[f"{name}{index}_weight"] = block[0].weight
                    named[f"{name}{index}_scale"] = block[1].weight
                    named[f"{name}{index}_shift"] = block[1].bias
            named[f"merge{index}_scale"] = scale.merge.weight
        named["draw_weight"] = self.draw.weight
        named["draw_bias"] = self.draw.bias
        return named


def reference_like(networks: SkipNets, index: int, config: DIPConfig, image_channels: int) -> ReferenceNet:
    """The plain network with the weights of the batched network's image ``index``."""
    own = dict(networks.named_parameters())
    reference = ReferenceNet(config, image_channels, networks.scales).to(next(networks.parameters()))
    live = reference.live_parameters()
    assert live.keys() == own.keys()
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(own[name][index])
    return reference


@dataclass
class ReferenceRun:
    drawings: list[Tensor]
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
    """The published loop for one image (C, H, W), with the noise given so that another loop can be given the same."""
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.adam_eps)
    run = ReferenceRun([], [])
    for iteration in range(iterations):
        optimiser.zero_grad()
        drawn = net((noise + fresh[iteration])[None])
        loss = F.mse_loss(drawn, image[None])
        loss.backward()
        optimiser.step()
        run.drawings.append(drawn.detach()[0])
        run.losses.append(loss.item())
    return run
