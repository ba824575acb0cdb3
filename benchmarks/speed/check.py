"""A contender, and the check against the published method before it is timed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.modes import without_tf32
from speed.networks import Build, PlainNet, is_dead

Fit = Callable[..., object]
"""``fit(images, budgets=…, config=…, on_iteration=…)``, as ``dipdefense.reconstruct.reconstruct`` is called."""


@dataclass(frozen=True)
class Contender:
    """One implementation of fitting networks to images.

    Attributes:
        name: the name in records.
        build: builds its networks.
        own: converts plain networks' tensors, stacked along a leading axis, to the names and layouts of ``build``.
        fit: its whole loop.
        batched: whether it fits several images at once; otherwise it is timed on one image.
        operands: dtype of the convolutions' operands.
        expendable: whether a failure excludes it, instead of ending the run.
    """

    name: str
    build: Build
    own: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    fit: Fit
    batched: bool = True
    operands: torch.dtype = torch.float32
    expendable: bool = False


PUBLISHED = "published loop"
"""The contender that every ratio refers to."""


class Errors(NamedTuple):
    """A contender's errors ‖difference‖ / ‖reference‖ against the plain network.

    Attributes:
        output: of the output images.
        gradient: of the parameter gradient with the largest error.
    """

    output: float
    gradient: float


_ALLOWED = {torch.float32: Errors(1e-4, 1e-2), torch.bfloat16: Errors(0.05, 0.25)}
# The gradients of some scales nearly cancel; their errors are relative to at least this share of the largest gradient.
_CANCELLED = 0.01


def check(contender: Contender, config: DIPConfig, *, scales: int, device: torch.device, seed: int) -> Errors:
    """Compare outputs and gradients with those of plain networks in float64.

    The input is small, and its sides are odd at some scales. Both have the same random weights, noise and output
    gradients. The contender computes in the dtype in which it is timed, but without tf32, whose rounding would hide
    small errors. LeakyReLU's slope is 0.9: its derivative jumps at zero by one minus the slope, and a value rounded
    across zero has the wrong gradient.

    Raises:
        ValueError: its outputs or gradients differ by more than rounding.
    """
    torch.manual_seed(seed)
    config = dataclasses.replace(config, leaky_slope=0.9)
    count, size = 3 if contender.batched else 1, (2 * 2**scales + 3, 2 * 2**scales + 6)
    networks = contender.build(config, 3, scales, count, device)
    plain = [PlainNet(config, 3, scales).to(device) for _ in range(count)]
    with torch.no_grad():
        for network in plain:
            # Scales of 1 and shifts of 0, the initial values, would hide mistakes in them.
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, value in contender.own(_stack(plain, lambda parameter: parameter)).items():
            networks.parameters[name].copy_(value)
    noise = torch.rand(count, config.input_channels, *size, device=device).to(contender.operands)
    pull = torch.randn(count, 3, *size, device=device)

    with without_tf32():
        output = networks.forward(noise)
        torch.autograd.backward(output, pull)
    expected = torch.cat([network.double()(noise[i : i + 1].double()) for i, network in enumerate(plain)])
    torch.autograd.backward(expected, pull.double())
    gradients = contender.own(_stack(plain, lambda parameter: parameter.grad))
    least = _CANCELLED * max(gradient.norm().item() for gradient in gradients.values())
    errors = Errors(
        _relative(output, expected),
        max(
            _relative(networks.parameters[name].grad, gradient, least)
            for name, gradient in gradients.items()
            if not is_dead(name)
        ),
    )
    allowed = _ALLOWED[contender.operands]
    # NaN fails.
    if not (errors.output <= allowed.output and errors.gradient <= allowed.gradient):
        raise ValueError(
            f"{contender.name} is not the published network: its outputs differ by {errors.output:.1e} and its "
            f"gradients by {errors.gradient:.1e} (allowed: {allowed.output:.0e} and {allowed.gradient:.0e}); "
            "it is not timed"
        )
    return errors


def _stack(networks: Sequence[PlainNet], of: Callable[[torch.nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
    """``of`` every parameter, by name, with the networks along a leading axis."""
    stacked = {}
    for name, _ in networks[0].named_parameters():
        values = [of(network.get_parameter(name)) for network in networks]
        stacked[name] = torch.stack([value for value in values if value is not None])
    return stacked


def _relative(result: Tensor | None, expected: Tensor, least: float = 0.0) -> float:
    """‖result − expected‖ / max(‖expected‖, least); NaN for no result."""
    if result is None:
        return math.nan
    return float((result.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp(min=least))
