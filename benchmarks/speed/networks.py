"""Independent networks at once, in implementations that take the same weights.

The plain network is written from the descriptions in Ulyanov et al. 2017 and Kattamis et al. 2019 with torch's own
layers. It shares only the configuration with the package.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, stack_module_state, vmap

from dipdefense.config import DIPConfig
from dipdefense.engine.network import SkipNets


class Networks(NamedTuple):
    """N networks.

    Attributes:
        parameters: leaves with gradients, in the names and layouts of the implementation.
        forward: from noise (N, input_channels, H, W) to images (N, image_channels, H, W) in [0, 1].
    """

    parameters: dict[str, Tensor]
    forward: Callable[[Tensor], Tensor]


Build = Callable[[DIPConfig, int, int, int, torch.device], Networks]
"""From (configuration, image channels, scales, N, device) to N networks with random weights."""


class Block(nn.Sequential):
    """Convolution, batch normalisation and LeakyReLU; ``count`` of them in groups.

    A 3×3 convolution has reflection padding.
    """

    def __init__(
        self, config: DIPConfig, inputs: int, outputs: int, kernel: int, stride: int = 1, *, count: int
    ) -> None:
        # Padding by zero pixels would still copy the tensor.
        padding = {"padding": 1, "padding_mode": "reflect"} if kernel == 3 else {}
        super().__init__(
            nn.Conv2d(count * inputs, count * outputs, kernel, stride, groups=count, **padding),  # type: ignore[arg-type]
            nn.BatchNorm2d(count * outputs, eps=config.norm_eps),
            nn.LeakyReLU(config.leaky_slope, inplace=True),
        )


class Scale(nn.Module):
    """A skip branch beside everything coarser, merged and mixed."""

    def __init__(self, config: DIPConfig, inputs: int, deeper: nn.Module | None, *, count: int) -> None:
        super().__init__()
        c, s = config.channels, config.skip_channels
        self.count = count
        self.skip = Block(config, inputs, s, 1, count=count) if s else None
        self.down = Block(config, inputs, c, 3, stride=2, count=count)
        self.same = Block(config, c, c, 3, count=count)
        self.deeper = deeper
        self.merge = nn.BatchNorm2d(count * (s + c), eps=config.norm_eps)
        self.up = Block(config, s + c, c, 3, count=count)
        self.mix = Block(config, c, c, 1, count=count)

    def forward(self, x: Tensor) -> Tensor:
        """(1, N·channels, height, width) to the same size."""
        y = self.same(self.down(x))
        if self.deeper is not None:
            y = self.deeper(y)
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)[..., : x.shape[2], : x.shape[3]]
        if self.skip is not None:
            branches = [part.reshape(self.count, -1, *x.shape[2:]) for part in (self.skip(x), y)]
            y = torch.cat(branches, dim=1).view(1, -1, *x.shape[2:])
        return self.mix(self.up(self.merge(y)))  # type: ignore[no-any-return]


class PlainNet(nn.Module):
    """The published network, or ``count`` of them with their channels in groups.

    A parameter has those of the ``count`` networks one after another along its first axis.
    """

    def __init__(self, config: DIPConfig, image_channels: int, scales: int, count: int = 1) -> None:
        super().__init__()
        self.count = count
        body: nn.Module | None = None
        for scale in reversed(range(scales)):
            body = Scale(config, config.channels if scale else config.input_channels, body, count=count)
        assert body is not None
        self.body = body
        self.output = nn.Conv2d(count * config.channels, count * image_channels, 1, groups=count)

    def forward(self, noise: Tensor) -> Tensor:
        """(N, input_channels, H, W) to (N, image_channels, H, W)."""
        features = self.body(noise.reshape(1, -1, *noise.shape[2:]))
        return torch.sigmoid(self.output(features)).view(self.count, -1, *noise.shape[2:])


def is_dead(name: str) -> bool:
    """Whether a plain network's parameter has no effect.

    Such parameters are the bias before a normalisation, and the shift of the normalisation after merging.
    """
    return name.endswith((".0.bias", ".merge.bias"))


def grouped(config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device) -> Networks:
    """Plain networks as grouped convolutions, without rewrites.

    A single one is the published network.
    """
    with device:
        network = PlainNet(config, image_channels, scales, count)
    return Networks(dict(network.named_parameters()), network)


def side_by_side(stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert plain networks' tensors, stacked along axis 0, to ``grouped``'s layout."""
    return {name: value.flatten(0, 1) for name, value in stacked.items()}


def vmapped(config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device) -> Networks:
    """``torch.func.vmap`` over stacked plain networks."""
    with device:
        networks = [PlainNet(config, image_channels, scales) for _ in range(count)]
    for network in networks:
        # vmap cannot update running statistics, which nothing here reads.
        replace_all_batch_norm_modules_(network)
    parameters, _ = stack_module_state(networks)
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def forward_one(parameters: dict[str, Tensor], noise: Tensor) -> Tensor:
        return functional_call(skeleton, parameters, (noise[None],))[0]  # type: ignore[no-any-return]

    return Networks(parameters, lambda noise: vmap(forward_one)(parameters, noise))


def unchanged(stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain networks' tensors, stacked along axis 0: the layout of ``vmapped``."""
    return stacked


def library(config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device) -> Networks:
    """The networks that ``dipdefense.reconstruct`` fits."""
    generators = [torch.Generator(device).manual_seed(index) for index in range(count)]
    networks = SkipNets(config, image_channels=image_channels, scales=scales, generators=generators, device=device)
    return Networks(dict(networks.named_parameters()), networks)


def as_library(stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert plain networks' tensors, stacked along axis 0, to ``library``'s.

    Those of no effect are left out.
    """
    own = {"output_weight": stacked["output.weight"], "output_bias": stacked["output.bias"]}
    prefix, scale = "body", 0
    while f"{prefix}.up.0.weight" in stacked:
        for name in ("skip", "down", "same", "up", "mix"):
            if f"{prefix}.{name}.0.weight" in stacked:
                own[f"{name}{scale}_weight"] = stacked[f"{prefix}.{name}.0.weight"]
                own[f"{name}{scale}_scale"] = stacked[f"{prefix}.{name}.1.weight"]
                own[f"{name}{scale}_shift"] = stacked[f"{prefix}.{name}.1.bias"]
        merge, up = stacked[f"{prefix}.merge.weight"], own[f"up{scale}_weight"]
        if skips := up.shape[2] - up.shape[1]:
            own[f"merge_skip{scale}_scale"] = merge[:, :skips]
            own[f"up_skip{scale}_weight"] = up[:, :, :skips]
        own[f"merge{scale}_scale"] = merge[:, skips:]
        own[f"up{scale}_weight"] = up[:, :, skips:].permute(0, 2, 4, 1, 3)
        prefix, scale = f"{prefix}.deeper", scale + 1
    return own
