"""Variants of the skip network without a fast form, batched, by plain operators.

The published code of Ulyanov et al. (``models/skip.py``) offers them: kernels of 5×5, pooling or a Lanczos filter
instead of strides, nearest upsampling, other activations, no 1×1 convolution at a scale's end. Two things differ from
that code:

* A Lanczos filter is fixed. There its taps are parameters between all pairs of channels, trained with the others.
* Odd sides are halved and rounded up, as by convolutions of stride 2, so that every variant has maps of the same sizes.
  There pooling drops the last row, and the merged maps are cropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.config import Activation, Downsampling
from dipdefense.engine import ops
from dipdefense.engine.constants import constant
from dipdefense.engine.folding import fold, unfold
from dipdefense.engine.network import Networks, Slot, conv_norm, output

# Reach of a filter to either side of the new pixel's centre, in new pixels.
_SUPPORT = {"lanczos2": 2, "lanczos3": 3}


class VariantNets(Networks):
    """One network an image, of any variant.

    Parameters without effect are left out as in ``SkipNets``. They are the same ones, because all filters here keep
    constants.
    """

    def _slots(self, image_channels: int) -> Iterator[Slot]:
        c, s, kernel = self.config.channels, self.config.skip_channels, self.config.kernel_size
        for scale in range(self.scales):
            inputs = self.config.input_channels if scale == 0 else c
            if s:
                yield from conv_norm(f"skip{scale}", inputs, s, 1)
            yield from conv_norm(f"down{scale}", inputs, c, kernel)
            yield from conv_norm(f"same{scale}", c, c, kernel)
            yield Slot(f"merge{scale}_scale", (s + c,), initial=1.0)
            yield from conv_norm(f"up{scale}", s + c, c, kernel)
            if self.config.pointwise:
                yield from conv_norm(f"mix{scale}", c, c, 1)
        yield from output(c, image_channels)

    def _scale(self, x: Tensor, scale: int) -> Tensor:
        config, (height, width) = self.config, x.shape[2:]
        strided = config.downsampling == "stride"
        deeper = ops.convolution(x, self.get_parameter(f"down{scale}_weight"), stride=2 if strided else 1)
        if not strided:
            deeper = downsampled(deeper, config.downsampling)
        deeper = self._block(f"same{scale}", self._norm_act(f"down{scale}", deeper))
        if scale + 1 < self.scales:
            deeper = self._scale(deeper, scale + 1)
        deeper = F.interpolate(deeper, scale_factor=2, mode=config.upsampling)[..., :height, :width]
        if config.skip_channels:
            deeper = torch.cat([self._block(f"skip{scale}", x), deeper], dim=1)
        merged = ops.normalise(deeper, self.get_parameter(f"merge{scale}_scale"), None, eps=config.norm_eps)
        merged = self._block(f"up{scale}", merged)
        return self._block(f"mix{scale}", merged) if config.pointwise else merged

    def _block(self, name: str, x: Tensor) -> Tensor:
        """Convolution, normalisation, activation."""
        return self._norm_act(name, ops.convolution(x, self.get_parameter(f"{name}_weight")))

    def _norm_act(self, name: str, x: Tensor) -> Tensor:
        config = self.config
        scale, shift = self.get_parameter(f"{name}_scale"), self.get_parameter(f"{name}_shift")
        slope = config.leaky_slope if config.activation == "leaky_relu" else None
        return activated(ops.normalise(x, scale, shift, eps=config.norm_eps, slope=slope), config.activation)


def activated(x: Tensor, activation: Activation) -> Tensor:
    """Apply the activation, if any, except LeakyReLU, which normalisation applies."""
    if activation == "swish":
        return F.silu(x)
    return F.elu(x) if activation == "elu" else x


def downsampled(x: Tensor, downsampling: Downsampling) -> Tensor:
    """(N, C, H, W) at half the resolution, by pooling or by a Lanczos filter.

    Odd sides are halved and rounded up.
    """
    if downsampling == "average":
        return F.avg_pool2d(x, 2, ceil_mode=True)
    if downsampling == "max":
        return F.max_pool2d(x, 2, ceil_mode=True)
    kernel = _lanczos(_SUPPORT[downsampling], x.dtype, x.device)
    border = kernel.shape[-1] // 2 - 1
    height, width = x.shape[2:]
    folded = fold(F.pad(x, (border, border + width % 2, border, border + height % 2), mode="replicate"))
    channels = folded.shape[1]
    return unfold(F.conv2d(folded, kernel.expand(channels, 1, -1, -1), stride=2, groups=channels), len(x))


@constant
def _lanczos(support: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The filter's taps, (4 · support, 4 · support), whose sum is 1.

    The new pixel's centre lies between the middle two.
    """
    taps = []
    for place in range(4 * support):
        distance = math.pi * (place + 0.5 - 2 * support) / 2
        taps.append(math.sin(distance) / distance * math.sin(distance / support) / (distance / support))
    row = torch.tensor(taps, dtype=torch.float64, device="cpu") / math.fsum(taps)
    return torch.outer(row, row).to(device, dtype)
