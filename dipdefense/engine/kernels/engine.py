"""A network's forward pass, backward pass and update in this package's kernels.

The backward pass is written out, since it recomputes activations on load where autograd would keep them. A layer's
result is stored once, raw. An :class:`Operand` is that tensor with the coefficients that turn it into the normalised
activation or, in the backward pass, into the raw values' gradient.

The merged normalisation is folded into the next convolution's weights: its factor γ / σ of each input channel depends
on the upsampled activation's variance, which the low-resolution tensor gives.

Checked in Triton's interpreter on a CPU, against the plain network; not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.engine.interpolation import Strips
from dipdefense.engine.kernels import normalisation as norm
from dipdefense.engine.kernels import upsampled
from dipdefense.engine.kernels.adam import adam
from dipdefense.engine.kernels.convolution import (
    TRANSPOSED,
    TRANSPOSED_GRADIENT,
    Geometry,
    convolve,
    forward_geometry,
    gradient_geometry,
)
from dipdefense.engine.kernels.epilogues import Finish, Partial
from dipdefense.engine.kernels.layout import Layout
from dipdefense.engine.kernels.merge import PLAIN, UPSAMPLED, merge_gradient, merge_moments
from dipdefense.engine.kernels.tiles import Operand
from dipdefense.engine.kernels.weight_gradient import TRANSPOSED_PAIRING, Pairing, convolution_pairing, weight_gradient


@dataclass
class _Merge:
    """One input of the merged normalisation: moments, factor and folded weights."""

    mean: Tensor
    inverse: Tensor
    factor: Tensor
    weight: Tensor
    pixels: int


@dataclass
class _Saved:
    """Tensors of one scale's forward pass that its backward pass reads."""

    x: Operand
    down: Operand
    same: Operand
    deep: Operand
    merge: _Merge
    borders: tuple[Strips, Strips]
    up: Operand
    mix: Operand
    skip: Operand | None = None
    merge_skip: _Merge | None = None


class Engine:
    """N networks' parameters in rows, and the passes over them.

    Args:
        parameters: ``dict(SkipNets(...).named_parameters())``; copied.
        config: the method's numbers.
        scales: how often the resolution is halved.
        dtype: of activations and operands, ``torch.bfloat16`` or ``torch.float32``; the rest is fp32.

    Attributes:
        layout: where in a row each parameter lies.
        rows: (N, length) fp32, the parameters.
        grads: (N, length) fp32, overwritten by every backward pass.

    Example::

        engine = Engine(dict(networks.named_parameters()), config, networks.scales)
        outputs = engine.forward(noise)                     # (N, H, W, channels), and so is the noise
        engine.backward(2 * (outputs - target) / target[0].numel())
        engine.update(iteration, corrections)
        engine.layout.unpack(engine.rows)                   # the parameters as SkipNets has them
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: DIPConfig,
        scales: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.config, self.scales, self.dtype = config, scales, dtype
        self.slope, self.eps = config.leaky_slope, config.norm_eps
        self.layout = Layout.of(parameters)
        self.rows = self.layout.pack(parameters)
        self.operands = self.rows if dtype == torch.float32 else self.rows.to(dtype)
        self.grads = torch.zeros_like(self.rows)
        self.moments = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self._saved: dict[int, _Saved] = {}

    def forward(self, noise: Tensor) -> Tensor:
        """The outputs, (N, H, W, image channels) fp32 in [0, 1], for this noise.

        The noise is (N, H, W, input_channels) in ``dtype``.
        """
        features = self._scale(Operand(noise), 0)
        weight = self.layout.view(self.rows, "output_weight")
        sums = self.rows.new_empty(*noise.shape[:3], weight.shape[3])
        convolve(features, weight, forward_geometry(1), size=_size(features), slope=self.slope, out=sums)
        self._outputs = torch.sigmoid(sums + self.layout.view(self.rows, "output_bias")[:, None, None])
        return self._outputs

    def backward(self, grad: Tensor) -> None:
        """Fill ``grads`` from the gradient of the last outputs."""
        grad = grad * self._outputs * (1 - self._outputs)
        self._grad("output_bias").copy_(grad.sum(dim=(1, 2)))
        mix = self._saved[0].mix
        weight_gradient(
            mix, Operand(grad), self._grad("output_weight"), convolution_pairing(1), slope=self.slope, fp32=True
        )
        weight = self.layout.view(self.rows, "output_weight")
        self._scale_backward(0, self._through("mix0", mix, Operand(grad), weight))

    def update(self, iteration: Tensor, corrections: Tensor) -> None:
        """Update the parameters by Adam, from ``grads``.

        See :func:`dipdefense.engine.kernels.adam.adam` for the arguments.
        """
        operands = None if self.operands is self.rows else self.operands
        adam(
            self.rows, self.grads, self.moments, operands, iteration, corrections,
            betas=self.config.betas, eps=self.config.adam_eps,
        )  # fmt: skip

    def _grad(self, name: str) -> Tensor:
        return self.layout.view(self.grads, name)

    def _scale(self, x: Operand, scale: int) -> Operand:
        size = _size(x)
        down = self._block(f"down{scale}", x, stride=2)
        same = self._block(f"same{scale}", down)
        deep = self._scale(same, scale + 1) if scale + 1 < self.scales else same
        merge = self._merge(f"merge{scale}_scale", f"up{scale}_weight", deep, UPSAMPLED.value, size)
        lines = upsampled.lines_of(deep, self.slope)
        spread, _ = convolve(deep, merge.weight, TRANSPOSED, size=upsampled.spread_size(*size), slope=self.slope)
        borders = upsampled.borders(*lines, merge.weight, size, self.dtype)
        finish = Finish(spread, *(pair.values.float() for pair in borders))
        skip = merge_skip = None
        if self.config.skip_channels:
            skip = self._block(f"skip{scale}", x)
            merge_skip = self._merge(f"merge_skip{scale}_scale", f"up_skip{scale}_weight", skip, PLAIN.value, size)
            up = self._block(f"up{scale}", skip, weight=merge_skip.weight, finish=finish)
        else:
            # Without a skip branch nothing is convolved: no input channels, and the filter alone is left.
            nothing = Operand(spread.new_empty(len(spread), *size, 0))
            weight = merge.weight.new_empty(len(spread), 1, 0, merge.weight.shape[3])
            up = self._block(f"up{scale}", nothing, weight=weight, finish=finish)
        mix = self._block(f"mix{scale}", up)
        self._saved[scale] = _Saved(x, down, same, deep, merge, borders, up, mix, skip, merge_skip)
        return mix

    def _block(
        self, name: str, x: Operand, *, stride: int = 1, weight: Tensor | None = None, finish: Finish | None = None
    ) -> Operand:
        """Convolution, and normalisation's coefficients from its tiles."""
        weight = self.layout.view(self.operands, f"{name}_weight") if weight is None else weight
        height, width = (-(-side // stride) for side in _size(x))
        raw, partial = convolve(
            x, weight, forward_geometry(_kernel(weight), stride),
            size=(height, width), slope=self.slope, finish=finish, partial=True,
        )  # fmt: skip
        assert partial is not None
        scale, shift = (self.layout.view(self.rows, f"{name}_{part}") for part in ("scale", "shift"))
        return Operand(raw, norm.normalisation(raw, partial, scale, shift, eps=self.eps))

    def _merge(self, scale: str, weight: str, feature: Operand, mode: int, size: tuple[int, int]) -> _Merge:
        mean, variance = merge_moments(feature, merge=mode, merged=size, slope=self.slope)
        inverse = (variance + self.eps).rsqrt()
        factor = self.layout.view(self.rows, scale) * inverse
        folded = self.layout.view(self.rows, weight) * factor[:, None, :, None]
        return _Merge(mean, inverse, factor, folded.to(self.dtype), size[0] * size[1])

    def _scale_backward(self, scale: int, grad: Operand) -> Operand | None:
        """From the gradient of a scale's last raw values to that of its input's.

        It is None for scale 0, whose input is the noise.
        """
        saved = self._saved.pop(scale)
        size = _size(saved.x)
        self._weight_gradient(f"mix{scale}", saved.up, grad)
        grad_up = self._through(f"up{scale}", saved.up, grad, self._weight(f"mix{scale}"))

        grad_skip = None
        if saved.skip is not None and saved.merge_skip is not None:
            self._weight_gradient(f"up_skip{scale}", saved.skip, grad_up)
            pull = self._unfold(f"merge_skip{scale}_scale", f"up_skip{scale}_weight", saved.merge_skip)
            values, _ = self._convolve_back(grad_up, saved.merge_skip.weight, gradient_geometry(3), saved.skip)
            partial = merge_gradient(values, saved.skip, pull, merge=PLAIN.value, merged=size, slope=self.slope)
            grad_skip = self._through_norm(f"skip{scale}", saved.skip, values, partial)
            self._weight_gradient(f"skip{scale}", saved.x, grad_skip)

        grad_spread = Operand(upsampled.filter_adjoint(grad_up))
        self._weight_gradient(f"up{scale}", saved.deep, grad_spread, TRANSPOSED_PAIRING)
        edges = upsampled.border_gradients(saved.borders, upsampled.ends_of(grad_up), self._grad(f"up{scale}_weight"))
        pull = self._unfold(f"merge{scale}_scale", f"up{scale}_weight", saved.merge)
        values, _ = self._convolve_back(grad_spread, saved.merge.weight, TRANSPOSED_GRADIENT, saved.deep)
        partial = merge_gradient(
            values, saved.deep, pull, merge=UPSAMPLED.value, merged=size, slope=self.slope, edges=edges
        )
        deeper = scale + 1 < self.scales
        grad_deep = self._through_norm(f"mix{scale + 1}" if deeper else f"same{scale}", saved.deep, values, partial)
        grad_same = self._scale_backward(scale + 1, grad_deep) if deeper else grad_deep
        assert grad_same is not None
        self._weight_gradient(f"same{scale}", saved.down, grad_same)
        grad_down = self._through(f"down{scale}", saved.down, grad_same, self._weight(f"same{scale}"))
        self._weight_gradient(f"down{scale}", saved.x, grad_down, stride=2)
        if scale == 0:
            return None
        part = None
        if grad_skip is not None:
            part, _ = self._convolve_back(grad_skip, self._weight(f"skip{scale}"), gradient_geometry(1), saved.x)
        return self._through(f"same{scale - 1}", saved.x, grad_down, self._weight(f"down{scale}"), stride=2, part=part)

    def _weight(self, name: str) -> Tensor:
        return self.layout.view(self.operands, f"{name}_weight")

    def _weight_gradient(
        self, name: str, x: Operand, grad: Operand, pairing: Pairing | None = None, *, stride: int = 1
    ) -> None:
        """The gradient of a layer's weights."""
        out = self._grad(f"{name}_weight")
        weight_gradient(x, grad, out, pairing or convolution_pairing(_kernel(out), stride), slope=self.slope)

    def _convolve_back(
        self,
        grad: Operand,
        weight: Tensor,
        geometry: Geometry,
        feature: Operand,
        *,
        finish: Finish | None = None,
        part: Tensor | None = None,
    ) -> tuple[Tensor, Partial | None]:
        return convolve(
            grad, weight, geometry, size=_size(feature), slope=self.slope, backwards=True, finish=finish,
            out=torch.empty_like(feature.values) if part is None else part, accumulate=part is not None,
            partial=finish is not None,
        )  # fmt: skip

    def _through(
        self,
        name: str,
        feature: Operand,
        grad: Operand,
        weight: Tensor,
        *,
        stride: int = 1,
        part: Tensor | None = None,
    ) -> Operand:
        """Back through a convolution and its input's LeakyReLU and normalisation.

        ``feature`` is the input, and ``name`` names its normalisation. ``part`` is the gradient that reaches the same
        feature another way; it is overwritten.
        """
        finish = Finish(raw=feature.values, coefficients=feature.coefficients)
        geometry = gradient_geometry(_kernel(weight), stride)
        values, partial = self._convolve_back(grad, weight, geometry, feature, finish=finish, part=part)
        assert partial is not None
        return self._through_norm(name, feature, values, partial)

    def _through_norm(self, name: str, feature: Operand, values: Tensor, partial: Partial) -> Operand:
        raw, coef, _ = feature
        assert coef is not None
        grad_scale, grad_shift = self._grad(f"{name}_scale"), self._grad(f"{name}_shift")
        return Operand(values, norm.normalisation_gradient(raw, partial, coef, grad_scale, grad_shift), raw)

    def _unfold(self, scale: str, weight: str, merge: _Merge) -> Tensor:
        """Unfold the factor: write the gradients of the weights and of the scale.

        The result is the variance's pull on its input: (N, 2, C), as :func:`merge_gradient` takes it.

        The variance's derivative by the activation is 2 / pixels times upsampling's Gram matrix applied to the
        deviation from the mean.
        """
        grad_weight, grad_scale = self._grad(weight), self._grad(scale)
        grad_factor = (grad_weight * self.layout.view(self.rows, weight)).sum(dim=(1, 3))
        grad_weight.mul_(merge.factor[:, None, :, None])
        grad_scale.copy_(grad_factor * merge.inverse)
        grad_variance = -0.5 * grad_factor * merge.factor * merge.inverse.square()
        return torch.stack([2 * grad_variance / merge.pixels, merge.mean], dim=1)


def _size(x: Operand) -> tuple[int, int]:
    return x.values.shape[1], x.values.shape[2]


def _kernel(weight: Tensor) -> int:
    return {1: 1, 9: 3}[weight.shape[1]]
