"""Who is timed: each way of fitting networks to images, and the check that it is the published method."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipdefense.checks import operand_dtype
from dipdefense.config import DIPConfig
from dipdefense.reconstruct import Reconstruction, Status, reconstruct
from speed.networks import (
    Build,
    PlainNet,
    as_library,
    grouped,
    is_dead,
    library,
    side_by_side,
    unchanged,
    vmapped,
)

Fit = Callable[..., object]
"""``fit(images, budgets=…, config=…, on_iteration=…)``, as ``dipdefense.reconstruct.reconstruct`` is called."""


@dataclass(frozen=True)
class Contender:
    """One way of fitting networks to images.

    Attributes:
        name: as records have it.
        build: its networks.
        own: plain networks' tensors, stacked along a leading axis, by the names and in the layouts of ``build``.
        fit: its loop, from start to end.
        batched: whether it fits several images at once; otherwise its time an image is that of one image alone.
        operands: dtype of the convolutions' operands.
        expendable: whether a run goes on without it where it fails.
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


def contenders(device: torch.device, *, expendable: bool = False) -> dict[str, Contender]:
    """Everyone who can run on this device, by name; those that no GPU has run yet if asked for."""
    published = Contender(PUBLISHED, grouped, side_by_side, functools.partial(_loop, grouped), batched=False)
    found = [
        published,
        Contender("vmap", vmapped, unchanged, functools.partial(_loop, vmapped)),
        Contender("grouped", grouped, side_by_side, functools.partial(_loop, grouped)),
        Contender("dipdefense, fp32", library, as_library, functools.partial(reconstruct, precision="fp32")),
    ]
    if operand_dtype("auto", device) == torch.bfloat16:
        fit = functools.partial(reconstruct, precision="bf16")
        found.append(Contender("dipdefense, bf16", library, as_library, fit, operands=torch.bfloat16))
    if importlib.util.find_spec("deepinv") is not None:
        found.append(dataclasses.replace(published, name="deepinv", fit=_deepinv))
    if expendable:
        from speed.trials import untried

        found += untried()
    return {contender.name: contender for contender in found}


def published_loop(
    images: Tensor, *, budgets: Sequence[int], config: DIPConfig, on_iteration: Callable[[], object] = lambda: None
) -> Reconstruction:
    """One image after another, eagerly, in fp32: a plain network, fresh noise at every iteration, Adam."""
    runs = [_loop(grouped, image[None], budgets=budgets, config=config, on_iteration=on_iteration) for image in images]
    drawings, losses = (torch.cat([getattr(run, part) for run in runs], dim=1) for part in ("images", "losses"))
    return Reconstruction(tuple(budgets), drawings, losses, tuple(run.status[0] for run in runs))


def _loop(
    build: Build, images: Tensor, *, budgets: Sequence[int], config: DIPConfig, on_iteration: Callable[[], object]
) -> Reconstruction:
    """The published loop around any networks; randomness is torch's global one."""
    count, channels, height, width = images.shape
    networks = build(config, channels, config.scales_for(height, width), count, images.device)
    optimiser = torch.optim.Adam(
        networks.parameters.values(), lr=config.learning_rate, betas=config.betas, eps=config.adam_eps
    )
    fixed = torch.rand(count, config.input_channels, height, width, device=images.device) * config.input_scale
    drawings, losses = [], []
    for iteration in range(1, budgets[-1] + 1):
        optimiser.zero_grad()
        drawn = networks.draw(fixed + torch.randn_like(fixed) * config.noise_std)
        loss = (drawn - images).square().mean(dim=(1, 2, 3))
        torch.autograd.backward(loss.sum())
        optimiser.step()
        losses.append(loss.detach())
        if iteration in budgets:
            drawings.append(drawn.detach())
        on_iteration()
    curves = torch.stack(losses)
    status: list[Status] = ["ok" if ok else "diverged" for ok in curves.isfinite().all(dim=0).tolist()]
    return Reconstruction(tuple(budgets), torch.stack(drawings), curves, tuple(status))


def _deepinv(images: Tensor, *, budgets: Sequence[int], config: DIPConfig, on_iteration: Callable[[], object]) -> None:
    """The loop of ``deepinv.models.DeepImagePrior`` around the published network.

    One image at a time, and an iteration is lighter than the published one: its noise is never drawn afresh.
    """
    deepinv: Any = importlib.import_module("deepinv")
    (image,) = images
    network = PlainNet(config, len(image), config.scales_for(*image.shape[1:])).to(image.device)
    calls = 0

    # There is no callback. The network is called once an iteration, and once more for the result.
    def count_iterations(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            on_iteration()

    network.register_forward_pre_hook(count_iterations)
    prior = deepinv.models.DeepImagePrior(
        network,
        img_size=(config.input_channels, *image.shape[1:]),
        iterations=budgets[-1],
        learning_rate=config.learning_rate,
    )
    prior(image[None], deepinv.physics.Denoising(device=image.device))


class Errors(NamedTuple):
    """How far a contender is from the plain network, ‖difference‖ / ‖reference‖.

    Attributes:
        drawing: of the drawn images.
        gradient: of the parameter's gradient that is farthest off.
    """

    drawing: float
    gradient: float


_ALLOWED = {torch.float32: Errors(1e-4, 1e-2), torch.bfloat16: Errors(0.05, 0.25)}
# Rounding errors of gradients that nearly cancel, as those of some scales do, are seen against this share of the
# largest gradient.
_CANCELLED = 0.01


def check(contender: Contender, config: DIPConfig, *, scales: int, device: torch.device, seed: int) -> Errors:
    """Compare drawings and gradients with those of plain networks in float64, on a small input.

    Weights, noise and the gradient that arrives at the drawings are the same, random ones; sizes are odd. The
    contender's numbers are in the dtype that it is timed in, but without tf32, whose rounding would hide small errors.
    LeakyReLU's slope is 0.9: its derivative jumps at zero, the more so the smaller the slope, and a value rounded
    across zero would cost its gradient.

    Raises:
        ValueError: it draws something else, or its gradients are others.
    """
    torch.manual_seed(seed)
    config = dataclasses.replace(config, leaky_slope=0.9)
    count, size = 3 if contender.batched else 1, (2 * 2**scales + 3, 2 * 2**scales + 6)
    networks = contender.build(config, 3, scales, count, device)
    plain = [PlainNet(config, 3, scales).to(device) for _ in range(count)]
    with torch.no_grad():
        for network in plain:
            # Scales and shifts start at 1 and 0, where a mistake in them would not show.
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, value in contender.own(_stack(plain, lambda parameter: parameter)).items():
            networks.parameters[name].copy_(value)
    noise = torch.rand(count, config.input_channels, *size, device=device).to(contender.operands)
    pull = torch.randn(count, 3, *size, device=device)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        drawn = networks.draw(noise)
        torch.autograd.backward(drawn, pull)
    expected = torch.cat([network.double()(noise[i : i + 1].double()) for i, network in enumerate(plain)])
    torch.autograd.backward(expected, pull.double())
    gradients = contender.own(_stack(plain, lambda parameter: parameter.grad))
    least = _CANCELLED * max(gradient.norm().item() for gradient in gradients.values())
    errors = Errors(
        _relative(drawn, expected),
        max(
            _relative(networks.parameters[name].grad, gradient, least)
            for name, gradient in gradients.items()
            if not is_dead(name)
        ),
    )
    allowed = _ALLOWED[contender.operands]
    # NaN is no error that is small enough.
    if not (errors.drawing <= allowed.drawing and errors.gradient <= allowed.gradient):
        raise ValueError(
            f"{contender.name} is not the published network: its drawings are off by {errors.drawing:.1e} and its "
            f"gradients by {errors.gradient:.1e} (allowed: {allowed.drawing:.0e} and {allowed.gradient:.0e}); "
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
