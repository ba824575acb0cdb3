"""The reconstruction of Kattamis et al. 2019, section 4: fit one untrained network an image, and stop early."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipdefense.checks import (
    Precision,
    Seed,
    check_backend,
    check_budgets,
    check_config,
    check_images,
    operand_dtype,
    resolve_seeds,
)
from dipdefense.config import PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.engine import graphs, heap, kernels
from dipdefense.engine.network import SkipNets

Status = Literal["ok", "diverged"]

# Pixels from which channels that are innermost pay, on a CPU.
_LARGE = 160 * 160


@dataclass(frozen=True)
class Reconstruction:
    """What one run recorded.

    Attributes:
        budgets: the iteration counts at which the drawings were kept, ascending.
        images: (len(budgets), N, C, H, W) in [0, 1], in the dtype and on the device of the input. The drawing at
            budget k is the network's k-th output, the one whose error ``losses[k - 1]`` is.
        losses: (iterations, N) float32, each network's mean squared error at each iteration.
        status: one an image: "ok", or "diverged" where a loss was not finite; from that iteration on its drawings
            are NaN.
    """

    budgets: tuple[int, ...]
    images: Tensor
    losses: Tensor
    status: tuple[Status, ...]


def reconstruct(
    images: Tensor,
    *,
    budgets: Sequence[int] = PAPER_BUDGETS,
    config: DIPConfig | None = None,
    seed: Seed = None,
    precision: Precision = "auto",
    backend: Backend = "torch",
    on_iteration: Callable[[], object] | None = None,
) -> Reconstruction:
    """Fit a network of its own to every image, all of them at once, and keep what they have drawn at each budget.

    The noise that a network draws from is uniform and fixed; Gaussian noise is added to it afresh at every iteration.
    The loss is the mean squared error to the image, the optimiser Adam (Ulyanov et al. 2017, equation 2; Kattamis et
    al. 2019, appendix A.2).

    On a CPU with glibc, freed memory stays with the process until the run ends (:mod:`dipdefense.engine.heap`).

    Args:
        images: (N, C, H, W) floats in [0, 1], H and W at least 32 pixels.
        budgets: iteration counts to record, each at least 1. One run to the largest serves them all.
        config: the method's numbers; the paper's by default.
        seed: an integer that every image uses, whatever its position; or one an image; or none for fresh ones from
            torch's default generator of the CPU. With a seed, no global generator is touched.
        precision: "fp32"; "bf16" for the convolutions' operands (parameters, statistics and loss stay fp32); "auto"
            takes bf16 on a GPU that has it.
        backend: "torch"; or, on an NVIDIA GPU alone, "cudagraphs" for the same operators replayed from a CUDA graph,
            or "triton" for hand-written kernels in one. The latter two have not yet been run on a GPU; the kernels
            have been checked in Triton's interpreter and compiled. They start from the same networks and fixed noise,
            but draw the fresh noise by a generator of their own, so that one seed gives other drawings.
        on_iteration: called after every iteration; a GPU may not have finished it yet.

    Raises:
        TypeError, ValueError: the input is not as described; nothing has been computed yet.

    Example:
        >>> run = reconstruct(torch.rand(2, 3, 32, 32), budgets=(1, 2), config=DIPConfig.architecture_2(), seed=0)
        >>> run.images.shape, run.status
        (torch.Size([2, 2, 3, 32, 32]), ('ok', 'ok'))
    """
    config = check_config(config)
    budgets = check_budgets(budgets)
    check_images(images, config)
    dtype = operand_dtype(precision, images.device)
    check_backend(backend, images.device)
    seeds = resolve_seeds(seed, len(images))
    with _ordinary_autograd(images.device), _surroundings(images.device):
        return _fit(images, budgets, config, seeds, dtype, backend, on_iteration or (lambda: None))


def _fit(
    images: Tensor,
    budgets: tuple[int, ...],
    config: DIPConfig,
    seeds: Sequence[int],
    operands: torch.dtype,
    backend: Backend,
    on_iteration: Callable[[], object],
) -> Reconstruction:
    count, channels, height, width = images.shape
    device, iterations = images.device, budgets[-1]
    target = images.detach().to(torch.float32, copy=True)
    drawings = images.new_empty(len(budgets), *images.shape)
    losses = target.new_empty(iterations, count)
    if count == 0:
        return Reconstruction(budgets, drawings, losses, ())

    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    networks = SkipNets(
        config,
        image_channels=channels,
        scales=config.scales_for(height, width),
        generators=generators,
        device=device,
    )
    fixed_noise = target.new_empty(count, config.input_channels, height, width)
    for noise, generator in zip(fixed_noise, generators, strict=True):
        noise.uniform_(0, config.input_scale, generator=generator)
    drawn, loss = torch.empty_like(target), target.new_empty(count)
    iterate: Callable[[], None]
    if backend == "triton":
        from dipdefense.engine.kernels.iteration import Iteration

        own = Iteration(
            dict(networks.named_parameters()), fixed_noise, target, seeds,
            config=config, scales=networks.scales, operands=operands, iterations=iterations, drawn=drawn, loss=loss,
        )  # fmt: skip
        iterate = own if kernels.interpreted() else graphs.Replayed(own, device)
    else:
        iterate = _by_torch(
            networks, fixed_noise, target, generators, operands, drawn, loss, replayed=backend == "cudagraphs"
        )

    for iteration in range(1, iterations + 1):
        iterate()
        losses[iteration - 1] = loss
        if iteration in budgets:
            drawings[budgets.index(iteration)] = drawn
        on_iteration()
    return Reconstruction(budgets, drawings, losses, _status(losses))


def _by_torch(
    networks: SkipNets,
    fixed_noise: Tensor,
    target: Tensor,
    generators: Sequence[torch.Generator],
    operands: torch.dtype,
    drawn: Tensor,
    loss: Tensor,
    *,
    replayed: bool,
) -> Callable[[], None]:
    """What does the next iteration, and leaves its drawings and their errors in ``drawn`` and ``loss``."""
    config = networks.config
    optimiser = torch.optim.Adam(
        networks.parameters(),
        lr=config.learning_rate, betas=config.betas, eps=config.adam_eps, fused=True, capturable=replayed,
    )  # fmt: skip
    # Convolutions of one large image are fastest with the channels innermost; groups of channels have no such layout.
    innermost = len(target) == 1 and target[0, 0].numel() >= _LARGE
    layout = torch.channels_last if innermost else torch.contiguous_format
    fresh_noise = torch.empty_like(fixed_noise)

    def update() -> None:
        output = networks((fresh_noise + fixed_noise).to(operands, memory_format=layout))
        error = (output - target).square().mean(dim=(1, 2, 3))
        optimiser.zero_grad()
        # The sum, not the mean: a network's gradient must not depend on how many others are fitted beside it.
        error.sum().backward()
        optimiser.step()
        drawn.copy_(output.detach())
        loss.copy_(error.detach())

    run = graphs.Replayed(update, target.device) if replayed else update

    def iterate() -> None:
        # Outside the graph: to set every image's generator before a replay takes more launches than to draw.
        for noise, generator in zip(fresh_noise, generators, strict=True):
            noise.normal_(0, config.noise_std, generator=generator)
        run()

    return iterate


def _status(losses: Tensor) -> tuple[Status, ...]:
    return tuple("ok" if ok else "diverged" for ok in losses.isfinite().all(dim=0).tolist())


@contextlib.contextmanager
def _surroundings(device: torch.device) -> Iterator[None]:
    """What a device wants while networks are fitted on it."""
    if device.type == "cpu":
        with heap.kept():
            yield
    elif device.type == "cuda":
        # Graphs are captured and Triton's kernels launched on the current device, which need not be the images'.
        with torch.cuda.device(device):
            try:
                yield
            finally:
                # A graph's memory must not go back while the GPU still works in it.
                torch.cuda.current_stream().synchronize()
    else:
        yield


@contextlib.contextmanager
def _ordinary_autograd(device: torch.device) -> Iterator[None]:
    """Fitting needs gradients and fp32, whatever no_grad, inference_mode or autocast the caller is in."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield
