"""A short fit of the purifier's networks, differentiable in the images.

The reconstruction after T iterations is a function of the image: every iteration's loss is a distance to it. Its
gradient is that of the composition of T − 1 updates by Adam, taken backwards one iteration at a time. Of the states
between iterations only every √T-th is kept, and the others are computed again (Chen et al. 2016): memory grows
as √T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipdefense.attacks.adaptive.skip_network import output
from dipdefense.checks import Request, check_request
from dipdefense.config import DIPConfig
from dipdefense.reconstruct import initial
from dipdefense.reduction import enlarged, reduced

# The root's derivative at 0 is infinite. Its argument is Adam's second moment: squares of gradients, where this is 0.
_TINY = 1e-30


class _State(NamedTuple):
    """The weights and Adam's two moments of each, between two iterations."""

    weights: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _State:
        third = len(tensors) // 3
        return cls(tuple(tensors[:third]), tuple(tensors[third : 2 * third]), tuple(tensors[2 * third :]))

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.weights, *self.first, *self.second)

    def leaves(self) -> _State:
        return _State.of([tensor.detach().requires_grad_() for tensor in self.tensors()])


@dataclass
class _Fit:
    """Everything that the iterations of one unrolled fit share."""

    config: DIPConfig
    scales: int
    names: tuple[str, ...]
    noise: Tensor
    generators: list[torch.Generator]

    def fresh(self) -> Tensor:
        """The input of the next iteration."""
        noise = torch.empty_like(self.noise)
        for row, generator in zip(noise, self.generators, strict=True):
            row.normal_(0, self.config.noise_std, generator=generator)
        return self.noise + noise

    def output(self, weights: Sequence[Tensor], noise: Tensor, images: Tensor) -> Tensor:
        named = {name: weight.to(images.dtype) for name, weight in zip(self.names, weights, strict=True)}
        return output(named, noise.to(images.dtype), self.config, self.scales)

    def update(self, state: _State, noise: Tensor, images: Tensor, taken: int, *, differentiable: bool) -> _State:
        """One iteration of Adam; ``taken`` counts it."""
        config, (decay, decay_second) = self.config, self.config.betas
        weights = state.weights if differentiable else tuple(each.detach().requires_grad_() for each in state.weights)
        with torch.enable_grad():
            # The sum over images: a network's gradient must not depend on how many others are fitted beside it.
            error = (self.output(weights, noise, images) - images).square().mean(dim=(1, 2, 3)).sum()
            gradients = torch.autograd.grad(error, weights, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            first = tuple(decay * m + (1 - decay) * g for m, g in zip(state.first, gradients, strict=True))
            second = tuple(
                decay_second * v + (1 - decay_second) * g.square() for v, g in zip(state.second, gradients, strict=True)
            )
            rate = config.learning_rate / (1 - decay**taken)
            moved = tuple(
                w - rate * m / ((v.clamp(min=_TINY) / (1 - decay_second**taken)).sqrt() + config.adam_eps)
                for w, m, v in zip(weights, first, second, strict=True)
            )
        return _State(moved, first, second)


def unrolled(images: Tensor, *, iterations: int, config: DIPConfig, seeds: Sequence[int]) -> Tensor:
    """The reconstruction after a few iterations, differentiable in the images.

    It is what :func:`dipdefense.reconstruct` gives with these seeds and "fp32" but for rounding. A backward pass takes
    about four times as long as the forward pass, which is slower than the engine's.

    Args:
        images: (N, C, H, W) floats in [0, 1].
        iterations: as a budget counts them: the output of the last one is returned.
        config: the method's numbers.
        seeds: one an image.

    Raises:
        TypeError, ValueError: the images do not suit the configuration.
    """
    request = check_request(
        images.detach(), budgets=(iterations,), config=config, seed=seeds, precision="fp32", backend="torch"
    )
    if config.reduction == 1:
        return _Unrolled.apply(images, request)  # type: ignore[no-any-return]
    size = images.shape[2:]
    smaller = reduced(images, config.fitted_size(*size))
    return enlarged(_Unrolled.apply(smaller, request.reduced()), size).to(images.dtype)


class _Unrolled(torch.autograd.Function):
    """All iterations, of which the forward pass keeps every √T-th state.

    The backward pass computes the states between again.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, request: Request) -> Tensor:
        begun, config = initial(request), request.config
        scales = config.scales_for(*images.shape[2:])
        fit = _Fit(config, scales, tuple(begun.weights), begun.noise, begun.generators)
        weights = tuple(weight.to(images.dtype) for weight in begun.weights.values())
        zeros = tuple(torch.zeros_like(weight) for weight in weights)
        state, updates, kept = _State(weights, zeros, zeros), request.budgets[0] - 1, []
        ctx.stride = max(1, math.isqrt(updates))
        for taken in range(1, updates + 1):
            if (taken - 1) % ctx.stride == 0:
                kept.append((taken, state, [generator.get_state() for generator in fit.generators]))
            state = fit.update(state, fit.fresh(), images, taken, differentiable=False)
        ctx.fit, ctx.kept, ctx.updates, ctx.last, ctx.last_noise = fit, kept, updates, state, fit.fresh()
        ctx.save_for_backward(images)
        return fit.output(state.weights, ctx.last_noise, images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (images,), fit = ctx.saved_tensors, ctx.fit
        with torch.enable_grad():
            weights = [weight.detach().requires_grad_() for weight in ctx.last.weights]
            last = fit.output(weights, ctx.last_noise, images.detach())
            adjoint = list(torch.autograd.grad(last, weights, gradient))
        adjoint += [torch.zeros_like(weight) for weight in (*weights, *weights)]
        total = torch.zeros_like(images)
        end = ctx.updates
        for start, state, generators in reversed(ctx.kept):
            for generator, saved in zip(fit.generators, generators, strict=True):
                generator.set_state(saved)
            between = []
            for taken in range(start, end + 1):
                noise = fit.fresh()
                between.append((taken, state, noise))
                if taken < end:
                    state = fit.update(state, noise, images, taken, differentiable=False)
            for taken, before, noise in reversed(between):
                with torch.enable_grad():
                    leaves, target = before.leaves(), images.detach().requires_grad_()
                    after = fit.update(leaves, noise, target, taken, differentiable=True)
                    *adjoint, own = torch.autograd.grad(after.tensors(), (*leaves.tensors(), target), adjoint)
                total += own
            end = start - 1
        return total, None
