"""The purifier's network as a plain function, differentiable any number of times.

The engine's operators have backward passes of their own, which are fast and cannot be differentiated again. These are
torch's, N networks at once: activations are (N, channels, height, width), and weights lead with the image axis too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.config import DIPConfig

Weights = Mapping[str, Tensor]


def output(weights: Weights, noise: Tensor, config: DIPConfig, scales: int) -> Tensor:
    """The outputs of all networks, (N, image_channels, H, W) in [0, 1].

    Args:
        weights: as :class:`dipdefense.reconstruct.Initial` has them.
        noise: the networks' input, (N, input_channels, H, W).
        config: the network's numbers.
        scales: how often the resolution is halved.
    """
    features = _scale(weights, noise, 0, config, scales)
    return torch.sigmoid(_convolve(features, weights["output_weight"]) + weights["output_bias"][:, :, None, None])


def _scale(weights: Weights, x: Tensor, scale: int, config: DIPConfig, scales: int) -> Tensor:
    """One scale: a skip branch beside everything coarser, merged and mixed."""
    height, width = x.shape[2:]
    deeper = _block(weights, f"same{scale}", _block(weights, f"down{scale}", x, config, stride=2), config)
    if scale + 1 < scales:
        deeper = _scale(weights, deeper, scale + 1, config, scales)
    deeper = F.interpolate(deeper, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    merged = _normalise(deeper, config) * weights[f"merge{scale}_scale"][:, :, None, None]
    # The engine keeps this layer's taps apart: (N, in, horizontal, out, vertical).
    kernels = weights[f"up{scale}_weight"].permute(0, 3, 1, 4, 2)
    if config.skip_channels:
        skip = _normalise(_block(weights, f"skip{scale}", x, config), config)
        merged = torch.cat([skip * weights[f"merge_skip{scale}_scale"][:, :, None, None], merged], dim=1)
        kernels = torch.cat([weights[f"up_skip{scale}_weight"], kernels], dim=2)
    up = _activated(weights, f"up{scale}", _convolve(merged, kernels), config)
    return _block(weights, f"mix{scale}", up, config)


def _block(weights: Weights, name: str, x: Tensor, config: DIPConfig, stride: int = 1) -> Tensor:
    """Convolution, normalisation, LeakyReLU."""
    return _activated(weights, name, _convolve(x, weights[f"{name}_weight"], stride), config)


def _activated(weights: Weights, name: str, x: Tensor, config: DIPConfig) -> Tensor:
    scale, shift = (weights[f"{name}_{part}"][:, :, None, None] for part in ("scale", "shift"))
    return F.leaky_relu(_normalise(x, config) * scale + shift, config.leaky_slope)


def _normalise(x: Tensor, config: DIPConfig) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (variance + config.norm_eps).rsqrt()


def _convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Each image with its own kernels (N, out, in, k, k); 3×3 ones pad by reflection."""
    count, outputs, _, kernel, _ = weight.shape
    if kernel == 3:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    y = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), stride=stride, groups=count)
    return y.view(count, outputs, *y.shape[2:])
