"""Compares the compiled kernels with torch's operators on a few small tensors.

Nothing relies on the kernels before they have passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.native.iteration import Iteration, fits
from dipdefense.native.library import Kernels

# Odd sizes leave incomplete vectors and blocks. The channels of one image may be innermost, those of two may not.
_SHAPES = ((1, 19, 33, 31), (2, 3, 5, 7))
_EPS, _SLOPE = 1e-5, 0.2
# Channels that fill a block of 32 or 16, that lack one vector of it, and that leave a vector incomplete. With these
# numbers an update is about the rate times the gradient, as large as the weights, and no variance near zero or steep
# activation magnifies rounding.
_RATE = 1000.0
_CONFIGS = tuple(
    DIPConfig(
        scales=scales, channels=channels, skip_channels=skips, input_channels=inputs, norm_eps=0.1,
        leaky_slope=0.6, learning_rate=_RATE, adam_eps=1.0,
    )
    for scales, channels, skips, inputs in ((2, 32, 4, 7), (1, 24, 2, 8), (1, 16, 0, 3), (1, 9, 3, 17))
)  # fmt: skip
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Of the root mean square, for a whole iteration's output and weights' updates in bf16: rounding gives 0.1 at most, and
# a missing tap 0.3. Scales' and shifts' gradients are sums that nearly cancel, of which rounding may leave nothing.
_ROUNDED = 0.2


class WrongError(Exception):
    """A kernel differs from torch's operators; the message says which one.

    It also says by how much, except for the fresh noise.
    """


def prove(kernels: Kernels) -> None:
    """Compare every kernel in both dtypes and both layouts.

    Raises:
        WrongError: one differs by more than rounding.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        for dtype in _TOLERANCE:
            for x, grad in _activations(dtype):
                _normalise(kernels, x, grad)
                _normalise_upsampled(kernels, x, grad)
                _head(kernels, x)
                if not x.is_contiguous():
                    _convolve_narrow(kernels, x, grad)
            _perturb(kernels, dtype)
            for config in _CONFIGS:
                if fits(config, dtype):
                    _iterate(kernels, config, dtype)


def _activations(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and gradients, (2, N, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    for shape in _SHAPES:
        x, grad = torch.randn(2, *shape, generator=generator).to(dtype)
        yield 2 * x + 1, grad
        if shape[0] == 1:
            yield tuple(each.contiguous(memory_format=torch.channels_last) for each in (2 * x + 1, grad))


def _rows(count: int, *shape: int) -> Tensor:
    """Parameters of ``count`` images, no two alike."""
    values = torch.linspace(-1, 1.3, torch.Size(shape).numel() * count, dtype=torch.float32)
    return values.view(count, *shape)


def _normalise(kernels: Kernels, x: Tensor, grad: Tensor) -> None:
    scale, shift = _rows(*x.shape[:2]), _rows(*x.shape[:2]).flip(1).contiguous()
    out, statistics = kernels.normalise(x, scale, shift, eps=_EPS, slope=_SLOPE)
    own = (out, *kernels.normalise_backward(x, grad, scale, shift, statistics, slope=_SLOPE))
    inputs = [each.float().clone().requires_grad_() for each in (x, scale, shift)]
    folded, weight, bias = inputs[0].reshape(1, -1, *x.shape[2:]), inputs[1].flatten(), inputs[2].flatten()
    normal = F.batch_norm(folded, None, None, weight, bias, training=True, eps=_EPS)
    plain = F.leaky_relu(normal, _SLOPE).view(x.shape)
    gradients = torch.autograd.grad(plain, inputs, grad.float())
    _compare("normalisation", own, (plain, *gradients), x.dtype)


def _normalise_upsampled(kernels: Kernels, low: Tensor, grad: Tensor) -> None:
    scale, (rows, columns) = _rows(*low.shape[:2]), low.shape[2:]
    # An even height and an odd width.
    height, width = 2 * rows, 2 * columns - 1
    out, statistics = kernels.normalise_upsampled(low, scale, height=height, width=width, eps=_EPS)
    gradients = kernels.normalise_upsampled_backward(low, grad, scale, statistics, height=height, width=width)
    inputs = [each.float().clone().requires_grad_() for each in (low, scale)]
    upsampled = F.interpolate(inputs[0], scale_factor=2, mode="bilinear")[..., :width]
    deviation = (upsampled.var(dim=(2, 3), correction=0) + _EPS).sqrt()
    plain = inputs[0] * (inputs[1] / deviation)[..., None, None]
    exact = (plain, *torch.autograd.grad(plain, inputs, grad.float()))
    _compare("upsampled tensor's normalisation", (out, *gradients), exact, low.dtype)


def _convolve_narrow(kernels: Kernels, addend: Tensor, grad: Tensor) -> None:
    count, outputs = addend.shape[:2]
    x, weight = addend[:, :3].contiguous(), _rows(count, outputs, 3, 3, 3)
    own = (kernels.convolve_narrow(x, weight, addend), *kernels.convolve_narrow_backward(x, weight, grad))
    inputs = [each.float().clone().requires_grad_() for each in (x, weight)]
    padded = F.pad(inputs[0], (1, 1, 1, 1), mode="reflect")
    plain = addend.float() + F.conv2d(padded, inputs[1][0])
    _compare("narrow convolution", own, (plain, *torch.autograd.grad(plain, inputs, grad.float())), addend.dtype)


def _head(kernels: Kernels, x: Tensor) -> None:
    count, channels, height, width = x.shape
    weight, bias = _rows(count, 3, channels), _rows(count, 3)
    target = torch.linspace(0, 1, count * 3 * height * width, dtype=torch.float32).view(count, 3, height, width)
    own = kernels.head(x, weight, bias, target)
    inputs = [each.float().clone().requires_grad_() for each in (x, weight, bias)]
    logits = torch.baddbmm(inputs[2][..., None], inputs[1], inputs[0].flatten(2)).view(target.shape)
    outputs = torch.sigmoid(logits)
    losses = (outputs - target).square().mean(dim=(1, 2, 3))
    gradients = torch.autograd.grad(losses.sum(), inputs)
    _compare("last layer", own, (outputs, losses, *gradients), x.dtype)


def _iterate(kernels: Kernels, config: DIPConfig, dtype: torch.dtype) -> None:
    generator, scales = torch.Generator().manual_seed(0), config.scales or 0
    target = torch.rand(2, 3, 21, 18, generator=generator, dtype=torch.float32)
    fixed = torch.rand(2, config.input_channels, 21, 18, generator=generator, dtype=torch.float32)
    weights = {
        name: torch.randn(2, *shape, generator=generator, dtype=torch.float32)
        for name, shape in _shapes(config, scales).items()
    }
    outputs, losses = torch.empty_like(target), target.new_empty(2)
    iteration = Iteration(
        kernels, weights, fixed, target, (3, 4), config=config, scales=scales, operands=dtype, outputs=outputs,
        losses=losses,
    )  # fmt: skip
    iteration()
    after, noise = iteration.weights(torch.arange(2)), fixed + iteration.fresh_noise()
    for image in range(2):
        leaves = {name: weight[image].requires_grad_() for name, weight in weights.items()}
        plain = _network(leaves, noise[image : image + 1], config, scales)
        loss = (plain[0] - target[image]).square().mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        own = {"output": outputs[image], "loss": losses[image]}
        own |= {name: after[name][image] - leaf.detach() for name, leaf in leaves.items()}
        expected = (plain[0], loss, *(-_RATE * gradient / (gradient.abs() + 1) for gradient in gradients))
        if dtype == torch.float32:
            _compare("iteration", tuple(own.values()), expected, dtype, slack=10)
            continue
        for (name, mine), right in zip(own.items(), expected, strict=True):
            off = ((mine - right).norm() / right.norm()).item()
            cancelling = name.endswith(("scale", "shift"))
            if not (mine.isfinite().all() and (cancelling or off <= _ROUNDED)):
                raise WrongError(f"the iteration in {dtype} is off by {off:.1e} in the root mean square of its {name}")


def _shapes(config: DIPConfig, scales: int) -> dict[str, tuple[int, ...]]:
    """The parameters of one image's network by name, in the kernels' order."""
    c, s = config.channels, config.skip_channels
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, outputs: int, *rest: int) -> None:
        shapes.update({f"{name}_weight": (outputs, *rest), f"{name}_scale": (outputs,), f"{name}_shift": (outputs,)})

    for at in range(scales):
        inputs = c if at else config.input_channels
        if s:
            layer(f"skip{at}", s, inputs, 1, 1)
            shapes |= {f"merge_skip{at}_scale": (s,), f"up_skip{at}_weight": (c, s, 3, 3)}
        layer(f"down{at}", c, inputs, 3, 3)
        layer(f"same{at}", c, c, 3, 3)
        shapes[f"merge{at}_scale"] = (c,)
        layer(f"up{at}", c, 3, c, 3)
        layer(f"mix{at}", c, c, 1, 1)
    return shapes | {"output_weight": (3, c, 1, 1), "output_bias": (3,)}


def _network(weights: Mapping[str, Tensor], x: Tensor, config: DIPConfig, scales: int) -> Tensor:
    """One image's output, (1, C, H, W), by a network of plain operators."""

    def normal(name: str, x: Tensor) -> Tensor:
        scale, shift = weights[f"{name}_scale"], weights.get(f"{name}_shift")
        return F.batch_norm(x, None, None, scale, shift, training=True, eps=config.norm_eps)

    def convolved(weight: Tensor, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(F.pad(x, (weight.shape[3] // 2,) * 4, mode="reflect"), weight, stride=stride)

    def block(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.leaky_relu(normal(name, convolved(weights[f"{name}_weight"], x, stride)), config.leaky_slope)

    def scale(x: Tensor, at: int) -> Tensor:
        deeper = block(f"same{at}", block(f"down{at}", x, stride=2))
        if at + 1 < scales:
            deeper = scale(deeper, at + 1)
        upsampled = F.interpolate(deeper, scale_factor=2, mode="bilinear")[..., : x.shape[2], : x.shape[3]]
        merged = convolved(weights[f"up{at}_weight"].permute(2, 0, 3, 1), normal(f"merge{at}", upsampled))
        if config.skip_channels:
            skip = normal(f"merge_skip{at}", block(f"skip{at}", x))
            merged = merged + convolved(weights[f"up_skip{at}_weight"], skip)
        return block(f"mix{at}", F.leaky_relu(normal(f"up{at}", merged), config.leaky_slope))

    return torch.sigmoid(F.conv2d(scale(x, 0), weights["output_weight"], weights["output_bias"]))


def _perturb(kernels: Kernels, dtype: torch.dtype) -> None:
    """Check the moments and the independence of the fresh noise.

    The noise of different seeds and iterations must be independent, and a seed's noise must not depend on its place.
    """
    fixed = torch.zeros(2, 3, 47, 31, dtype=torch.float32)
    first, second, moved = (torch.empty_like(fixed, dtype=dtype) for _ in range(3))
    kernels.perturb(fixed, torch.tensor([5, 6]), 1, 1.0, first)
    kernels.perturb(fixed, torch.tensor([5, 6]), 2, 1.0, second)
    kernels.perturb(fixed, torch.tensor([6, 5]), 1, 1.0, moved)
    samples = torch.stack([*first, *second]).float().flatten(1)
    # Six standard errors of 4,371 samples.
    correlations = samples @ samples.T / samples.shape[1]
    right = (
        torch.equal(first.flip(0), moved)
        and samples.mean(1).abs().max() < 0.1
        and (correlations - torch.eye(4)).abs().max() < 0.13
    )
    if not right:
        raise WrongError("the fresh noise is not independent and normal, or depends on an image's place")


def _compare(
    name: str, own: tuple[Tensor | None, ...], plain: tuple[Tensor, ...], dtype: torch.dtype, *, slack: float = 1
) -> None:
    for mine, theirs in zip(own, plain, strict=True):
        assert mine is not None
        off = ((mine.float() - theirs).abs().max() / theirs.abs().max()).item()
        # The comparison does not hold for NaN.
        if not off <= slack * _TOLERANCE[dtype]:
            raise WrongError(f"the {name} in {dtype} is off by {off:.1e} of its largest value")
