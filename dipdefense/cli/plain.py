"""The plain loop in float64 that ``doctor`` compares the defence with.

It fits one network to one image, as in the paper. Nothing is batched or folded, and nothing is left out except the
biases that a normalisation removes. Initial weights and noise are sampled in the defence's order, so one seed gives
both the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.config import DIPConfig

Weights = dict[str, Tensor]


def losses(image: Tensor, *, seed: int, config: DIPConfig, iterations: int) -> list[float]:
    """The mean squared error of one image's network at each iteration.

    Args:
        image: (C, H, W) in [0, 1]. Random numbers are sampled on its device; all arithmetic is on the CPU.
        seed: of the network and its noise.
        config: the configuration.
        iterations: number of iterations.
    """
    channels, height, width = image.shape
    scales = config.scales_for(height, width)
    generator = torch.Generator(image.device).manual_seed(seed)
    weights = _initial(config, channels, scales, generator)
    shape = (config.input_channels, height, width)
    fixed = torch.empty(shape, device=image.device).uniform_(0, config.input_scale, generator=generator)
    optimiser = torch.optim.Adam(weights.values(), lr=config.learning_rate, betas=config.betas, eps=config.adam_eps)
    found = []
    for _ in range(iterations):
        fresh = torch.empty(shape, device=image.device).normal_(0, config.noise_std, generator=generator)
        features = _scale((fixed + fresh).double().cpu()[None], 0, scales, weights, config)
        output = torch.sigmoid(F.conv2d(features, weights["output"], weights["bias"]))
        loss = F.mse_loss(output, image.double().cpu()[None])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        found.append(loss.item())
    return found


def _initial(config: DIPConfig, channels: int, scales: int, generator: torch.Generator) -> Weights:
    c, s = config.channels, config.skip_channels
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    ones, zeros = {}, {}
    for scale in range(scales):
        inputs = config.input_channels if scale == 0 else c
        if s:
            shapes[f"skip{scale}"] = ((s, inputs, 1, 1), inputs)
            shapes[f"up_skip{scale}"] = ((c, s, 3, 3), 9 * (s + c))
            ones[f"skip{scale}.scale"] = zeros[f"skip{scale}.shift"] = s
        shapes[f"down{scale}"] = ((c, inputs, 3, 3), 9 * inputs)
        shapes[f"same{scale}"] = ((c, c, 3, 3), 9 * c)
        shapes[f"up{scale}"] = ((c, 3, c, 3), 9 * (s + c))
        shapes[f"mix{scale}"] = ((c, c, 1, 1), c)
        ones[f"merge{scale}.scale"] = s + c
        for name in ("down", "same", "up", "mix"):
            ones[f"{name}{scale}.scale"] = zeros[f"{name}{scale}.shift"] = c
    shapes["output"], shapes["bias"] = ((channels, c, 1, 1), c), ((channels,), c)
    total = sum(math.prod(shape) for shape, _ in shapes.values())
    uniform = torch.empty(total, device=generator.device).uniform_(-1, 1, generator=generator).double().cpu()
    parts = torch.split(uniform, [math.prod(shape) for shape, _ in shapes.values()])
    weights = {
        name: part.reshape(shape) / math.sqrt(fan_in)
        for part, (name, (shape, fan_in)) in zip(parts, shapes.items(), strict=True)
    }
    for scale in range(scales):
        # The defence keeps these kernels as (inputs, width, outputs, height), and apart from the skip branch's.
        deep = weights[f"up{scale}"].permute(2, 0, 3, 1)
        weights[f"up{scale}"] = torch.cat([weights.pop(f"up_skip{scale}"), deep], dim=1) if s else deep
    weights |= {name: torch.ones(size, dtype=torch.float64) for name, size in ones.items()}
    weights |= {name: torch.zeros(size, dtype=torch.float64) for name, size in zeros.items()}
    return {name: weight.clone().requires_grad_() for name, weight in weights.items()}


def _block(x: Tensor, name: str, weights: Mapping[str, Tensor], config: DIPConfig, *, stride: int = 1) -> Tensor:
    """Convolution with reflection padding, batch normalisation, LeakyReLU."""
    padding = weights[name].shape[-1] // 2
    x = F.conv2d(F.pad(x, [padding] * 4, mode="reflect"), weights[name], stride=stride)
    scale, shift = weights[f"{name}.scale"], weights[f"{name}.shift"]
    return F.leaky_relu(F.batch_norm(x, None, None, scale, shift, True, eps=config.norm_eps), config.leaky_slope)


def _scale(x: Tensor, scale: int, scales: int, weights: Mapping[str, Tensor], config: DIPConfig) -> Tensor:
    """One scale: a skip branch beside everything coarser, merged and mixed."""
    deeper = _block(_block(x, f"down{scale}", weights, config, stride=2), f"same{scale}", weights, config)
    if scale + 1 < scales:
        deeper = _scale(deeper, scale + 1, scales, weights, config)
    merged = F.interpolate(deeper, scale_factor=2, mode="bilinear")[..., : x.shape[2], : x.shape[3]]
    if config.skip_channels:
        merged = torch.cat([_block(x, f"skip{scale}", weights, config), merged], dim=1)
    merged = F.batch_norm(merged, None, None, weights[f"merge{scale}.scale"], None, True, eps=config.norm_eps)
    return _block(_block(merged, f"up{scale}", weights, config), f"mix{scale}", weights, config)
