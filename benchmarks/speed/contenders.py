"""The contenders: all timed implementations of fitting networks to images."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dipdefense.checks import Precision, operand_dtype
from dipdefense.config import DIPConfig
from dipdefense.engine import compiled
from dipdefense.native import loading
from dipdefense.native.iteration import Iteration, fits
from dipdefense.reconstruct import Reconstruction, Status, reconstruct
from speed.check import PUBLISHED, Contender
from speed.networks import (
    Build,
    Networks,
    PlainNet,
    as_library,
    grouped,
    library,
    side_by_side,
    unchanged,
    vmapped,
)

GRAPHS, KERNELS, NATIVE = "dipdefense, CUDA graph", "dipdefense, Triton", "dipdefense, native"
_OPERANDS: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def contenders(device: torch.device, *, expendable: bool = False) -> dict[str, Contender]:
    """All contenders of this device by name.

    With ``expendable`` they include those that no GPU has run yet.
    """
    plainly = functools.partial(reconstruct, backend="torch")
    published = Contender(PUBLISHED, grouped, side_by_side, functools.partial(_loop, grouped), batched=False)
    found = [
        published,
        Contender("vmap", vmapped, unchanged, functools.partial(_loop, vmapped)),
        Contender("grouped", grouped, side_by_side, functools.partial(_loop, grouped)),
        Contender("dipdefense, fp32", library, as_library, functools.partial(plainly, precision="fp32")),
    ]
    if operand_dtype("auto", device) == torch.bfloat16:
        fit = functools.partial(plainly, precision="bf16")
        found.append(Contender("dipdefense, bf16", library, as_library, fit, operands=torch.bfloat16))
    if device.type == "cpu" and loading.loaded().kernels is not None:
        for operands, name in _OPERANDS.items():
            whole = fits(DIPConfig.paper(), operands)
            build = functools.partial(whole_iterations, operands=operands) if whole else between_convolutions
            fit = functools.partial(reconstruct, precision=name, backend="native")
            found.append(Contender(f"{NATIVE}, {name}", build, as_library, fit, operands=operands))
    if importlib.util.find_spec("deepinv") is not None:
        found.append(dataclasses.replace(published, name="deepinv", fit=_deepinv))
    if expendable:
        found += untried()
    return {contender.name: contender for contender in found}


def untried() -> list[Contender]:
    """The library's CUDA graph and its Triton kernels, both in bf16."""
    graphs, kernels = (functools.partial(reconstruct, precision="bf16", backend=b) for b in ("cudagraphs", "triton"))
    options: dict[str, Any] = {"operands": torch.bfloat16, "expendable": True}
    return [
        Contender(GRAPHS, library, as_library, graphs, **options),
        Contender(KERNELS, in_kernels, as_library, kernels, **options),
    ]


def whole_iterations(
    config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device, *, operands: torch.dtype
) -> Networks:
    """The networks of ``library``, run by the native kernels' iterations.

    An iteration has the loss's gradient built in. So any gradient of the outputs is had from a target that gives it,
    and the parameters' from an update with a large ε.
    """
    parameters, _ = library(config, image_channels, scales, count, device)
    names, rows = list(parameters), torch.arange(count)
    rate, eps = 1e6, 1e3
    config = dataclasses.replace(config, noise_std=0.0, learning_rate=rate, adam_eps=eps)

    def iterate(noise: Tensor, target: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs and the updated weights."""
        outputs, losses = torch.empty_like(target), target.new_empty(count)
        iteration = Iteration(
            loading.required(), dict(zip(names, weights, strict=True)), noise.float(), target, range(count),
            config=config, scales=scales, operands=operands, outputs=outputs, losses=losses,
        )  # fmt: skip
        iteration()
        return outputs, iteration.weights(rows)

    class Passes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, noise: Tensor, *weights: Tensor) -> Tensor:
            outputs, _ = iterate(
                noise, noise.new_zeros(count, image_channels, *noise.shape[2:], dtype=torch.float32), weights
            )
            ctx.save_for_backward(noise, outputs, *weights)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            noise, outputs, *weights = ctx.saved_tensors
            _, after = iterate(noise, outputs - grads[0] * (outputs[0].numel() / 2), weights)
            shares = [(before - after[name]) / rate for name, before in zip(names, weights, strict=True)]
            return None, *(eps * share / (1 - share.abs()) for share in shares)

    return Networks(parameters, lambda noise: Passes.apply(noise, *parameters.values()))


def between_convolutions(
    config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device
) -> Networks:
    """The networks of ``library`` with native kernels between torch's convolutions."""
    parameters, networks = library(config, image_channels, scales, count, device)

    def run(noise: Tensor) -> Tensor:
        with compiled.using(loading.required()):
            return networks(noise)

    return Networks(parameters, run)


def in_kernels(config: DIPConfig, image_channels: int, scales: int, count: int, device: torch.device) -> Networks:
    """The networks of ``library``, run by ``dipdefense.engine.kernels.engine``."""
    parameters, _ = library(config, image_channels, scales, count, device)
    names, values = list(parameters), list(parameters.values())

    class Passes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, noise: Tensor, *values: Tensor) -> Tensor:
            from dipdefense.engine.kernels.engine import Engine

            ctx.engine = Engine(dict(zip(names, values, strict=True)), config, scales, noise.dtype)
            output: Tensor = ctx.engine.forward(noise.permute(0, 2, 3, 1).contiguous())
            return output.permute(0, 3, 1, 2).contiguous()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            ctx.engine.backward(grads[0].permute(0, 2, 3, 1).contiguous())
            found = ctx.engine.layout.unpack(ctx.engine.grads)
            return None, *(found[name] for name in names)

    return Networks(parameters, lambda noise: Passes.apply(noise, *values))


def published_loop(
    images: Tensor, *, budgets: Sequence[int], config: DIPConfig, on_iteration: Callable[[], object] = lambda: None
) -> Reconstruction:
    """Fit one image after another, eagerly and in fp32.

    Each has a plain network, fresh noise at every iteration, and Adam.
    """
    runs = [_loop(grouped, image[None], budgets=budgets, config=config, on_iteration=on_iteration) for image in images]
    outputs, losses = (torch.cat([getattr(run, part) for run in runs], dim=1) for part in ("images", "losses"))
    return Reconstruction(tuple(budgets), outputs, losses, tuple(run.status[0] for run in runs), "torch")


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
    outputs, losses = [], []
    for iteration in range(1, budgets[-1] + 1):
        optimiser.zero_grad()
        output = networks.forward(fixed + torch.randn_like(fixed) * config.noise_std)
        loss = (output - images).square().mean(dim=(1, 2, 3))
        torch.autograd.backward(loss.sum())
        optimiser.step()
        losses.append(loss.detach())
        if iteration in budgets:
            outputs.append(output.detach())
        on_iteration()
    curves = torch.stack(losses)
    status: list[Status] = ["ok" if ok else "diverged" for ok in curves.isfinite().all(dim=0).tolist()]
    return Reconstruction(tuple(budgets), torch.stack(outputs), curves, tuple(status), "torch")


def _deepinv(images: Tensor, *, budgets: Sequence[int], config: DIPConfig, on_iteration: Callable[[], object]) -> None:
    """The loop of ``deepinv.models.DeepImagePrior`` around the published network.

    It fits one image at a time, and its iterations do less than the published ones: the noise is sampled only once.
    """
    deepinv: Any = importlib.import_module("deepinv")
    (image,) = images
    network = PlainNet(config, len(image), config.scales_for(*image.shape[1:])).to(image.device)
    calls = 0

    # There is no callback. The network is called once per iteration, and once more for the result.
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
