"""The reconstruction of Kattamis et al. 2019, section 4: fit one untrained network an image, and stop early."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dipdefense import graphs, heap, kernels
from dipdefense.config import PAPER_BUDGETS, Backend, DIPConfig
from dipdefense.network import SkipNets

Precision = Literal["auto", "fp32", "bf16"]
Status = Literal["ok", "diverged"]
Seed = int | Sequence[int] | None

# An image that was normalised and denormalised again misses [0, 1] by rounding; that is no reason to refuse it.
_ROUNDING = 1e-4

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

    On a CPU with glibc, freed memory stays with the process until the run ends (:mod:`dipdefense.heap`).

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
        from dipdefense.kernels.iteration import Iteration

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


def operand_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the convolutions' operands on this device.

    Raises:
        ValueError: ``precision`` is unknown, or the device has no bf16.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f'precision must be "auto", "fp32" or "bf16", got {precision!r}')
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise ValueError(f'{device} has no bf16 arithmetic; use precision="fp32" or "auto"')
    wants_bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda" and has_bf16)
    return torch.bfloat16 if wants_bf16 else torch.float32


def check_backend(backend: Backend, device: torch.device | None = None) -> None:
    """Refuse an unknown backend and, given a device, one that does not run there.

    Raises:
        ValueError: it does not; the message says what is missing.
    """
    if backend not in get_args(Backend):
        raise ValueError(f'backend must be "torch", "cudagraphs" or "triton", got {backend!r}')
    if device is None:
        return
    if backend == "triton":
        kernels.require(device)
    if backend == "cudagraphs" and (device.type != "cuda" or torch.version.cuda is None):
        raise ValueError(
            f'backend="cudagraphs" needs the images on an NVIDIA GPU, got images on {device}; move them there '
            '(images.to("cuda")) or use backend="torch"'
        )


def check_config(config: DIPConfig | None) -> DIPConfig:
    """The configuration, or the paper's for None.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(config, DIPConfig | None):
        raise TypeError(f"config must be a DIPConfig such as DIPConfig.compact(), or None, got {config!r}")
    return config or DIPConfig()


def check_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """The budgets as an ascending tuple.

    Raises:
        ValueError: there are none, one is no positive integer, or they do not ascend.
    """
    budgets = tuple(budgets)
    if not budgets:
        raise ValueError("budgets must name at least one iteration count, such as (500, 750, 1000); got none")
    if any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in budgets):
        raise ValueError(f"budgets must be integers of at least 1, got {budgets}")
    if list(budgets) != sorted(set(budgets)):
        raise ValueError(f"budgets must ascend and name no count twice, got {budgets}")
    return budgets


def check_images(images: Tensor, config: DIPConfig | None = None) -> None:
    """Refuse anything that is no batch of images in [0, 1] (and, given a configuration, large enough for it).

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: wrong rank, too small, not finite, or outside [0, 1] by more than rounding (1e-4).
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4:
        hint = "; add a batch axis with images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images must have shape (batch, channels, height, width), got {tuple(images.shape)}{hint}")
    if not images.is_floating_point():
        hint = "; divide uint8 images by 255" if images.dtype == torch.uint8 else ""
        raise TypeError(f"images must be floating point in [0, 1], got {images.dtype}{hint}")
    if images.shape[1] == 0:
        raise ValueError(f"images must have at least one channel, got shape {tuple(images.shape)}")
    if config is not None:
        config.scales_for(*images.shape[2:])
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in images.detach().aminmax())
    if not torch.isfinite(images).all():
        bad = (~images.detach().flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"images must be finite, but NaN or infinity is in the images at {bad}")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        hint = "uint8 values? divide by 255" if high > 2.9 and low >= 0 else "already normalised? undo mean and std"
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g} ({hint} first)")


def check_seed(seed: Seed) -> None:
    """Refuse what is no seed.

    Raises:
        TypeError: not an integer, a sequence of integers or None.
        ValueError: a seed outside [0, 2**63).
    """
    seeds = [] if seed is None else seed if isinstance(seed, Sequence) else [seed]
    if isinstance(seed, str) or any(isinstance(s, bool) or not isinstance(s, int) for s in seeds):
        raise TypeError(f"seed must be an integer, one integer an image, or None, got {seed!r}")
    if any(not 0 <= s < 2**63 for s in seeds):
        raise ValueError(f"seeds must lie in [0, 2**63), got {seed!r}")


def resolve_seeds(seed: Seed, count: int) -> list[int]:
    """One seed an image: the integer for each of them, the given ones, or fresh ones from the default generator.

    Raises:
        TypeError, ValueError: no seeds, or a sequence of another length than the batch.
    """
    check_seed(seed)
    if seed is None:
        return torch.randint(2**63 - 1, (count,)).tolist()
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ValueError(f"seed must be one integer or one an image, got {len(seeds)} seeds for {count} images")
    return seeds
