"""The loop of :mod:`dipdefense.reconstruct` in the kernels: one iteration over fixed buffers, captured and replayed.

The first iterations run as they are, on a stream of their own: they compile the kernels, which a capture cannot. Then
an iteration is captured in a CUDA graph, which executes nothing, and replayed for every one that is left. What differs
from one iteration to the next (the noise's counter, Adam's bias corrections) hangs on a count in the GPU's memory that
the iteration itself raises, so that the fit is the same wherever the capture comes.

Checked in Triton's interpreter on a CPU, where nothing is captured; not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dipdefense.config import DIPConfig
from dipdefense.kernels import interpreted
from dipdefense.kernels.adam import bias_corrections
from dipdefense.kernels.engine import Engine
from dipdefense.kernels.noise import perturb

# Iterations before the capture. The first compiles and loads all that there is; the second is torch's advice, for
# whatever sets itself up when it is used again.
_WARM_UP = 2

_threads = threading.local()


class Iteration:
    """One iteration of all images: noise, drawing, loss, gradients, update. Calling it does the next one.

    Args:
        parameters: the networks' start, ``dict(SkipNets(...).named_parameters())``.
        fixed_noise: (N, input_channels, H, W) fp32.
        target: (N, C, H, W) fp32, the images.
        seeds: one an image, for the fresh noise.
        config: the method's numbers.
        scales: how often the networks halve the resolution.
        operands: dtype of activations and operands, bf16 or fp32.
        iterations: the most that it will be called for.

    Attributes:
        drawn: (N, C, H, W) fp32 in [0, 1], what the last call drew.
        loss: (N,) fp32, each drawing's mean squared error.
    """

    drawn: Tensor
    loss: Tensor

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        fixed_noise: Tensor,
        target: Tensor,
        seeds: Sequence[int],
        *,
        config: DIPConfig,
        scales: int,
        operands: torch.dtype,
        iterations: int,
    ) -> None:
        device = target.device
        self.engine = Engine(parameters, config, scales, operands)
        self._std = config.noise_std
        self._fixed_noise, self._target = (x.permute(0, 2, 3, 1).contiguous() for x in (fixed_noise, target))
        self._noise = torch.empty_like(self._fixed_noise, dtype=operands)
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._count = torch.ones((), dtype=torch.int64, device=device)
        self._corrections = bias_corrections(
            iterations, learning_rate=config.learning_rate, betas=config.betas, device=device
        )

    def __call__(self) -> None:
        """Do the next iteration, without waiting for it."""
        perturb(self._fixed_noise, self._seeds, self._count, self._noise, std=self._std)
        drawn = self.engine.forward(self._noise)
        error = drawn - self._target
        loss = error.square().mean(dim=(1, 2, 3))
        # Of the sum of the images' losses, so that no network's gradient depends on how many there are.
        self.engine.backward(error * (2 / error[0].numel()))
        self.engine.update(self._count, self._corrections)
        self._count += 1
        # Held, or a graph would let later tensors overwrite them.
        self.drawn, self.loss = drawn.permute(0, 3, 1, 2), loss


def fit(
    step: Iteration,
    *,
    budgets: Sequence[int],
    drawings: Tensor,
    losses: Tensor,
    on_iteration: Callable[[], object],
) -> None:
    """Fill ``drawings`` and ``losses`` as the loop of :func:`dipdefense.reconstruct.reconstruct` does.

    Args:
        step: not called before, for ``budgets[-1]`` iterations or more.
        budgets: ascending; the iterations whose drawings are kept.
        drawings: (len(budgets), N, C, H, W) to be filled, in any floating dtype.
        losses: (budgets[-1], N) fp32, to be filled.
        on_iteration: called after every iteration has been asked for.
    """
    device = losses.device
    # Triton launches on the current device, which need not be the images'.
    with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        capturing = _captures(device)
        run: Callable[[], None] = _apart(step, _stream(device)) if capturing else step
        for number in range(1, budgets[-1] + 1):
            if capturing and number == _WARM_UP + 1:
                run = _captured(step, _stream(device))
            run()
            losses[number - 1] = step.loss
            if number in budgets:
                drawings[budgets.index(number)] = step.drawn
            on_iteration()
        if device.type == "cuda":
            # The graph's memory must not go back while the GPU still works in it.
            torch.cuda.current_stream(device).synchronize()


def _captures(device: torch.device) -> bool:
    """Whether iterations are replayed from a graph."""
    return device.type == "cuda" and not interpreted()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's stream for capturing on a device, the same one for every fit: cuBLAS keeps a workspace a stream."""
    streams: dict[torch.device, torch.cuda.Stream] = _threads.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def _apart(step: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
    """The step on another stream, as capturing wants its warm-up, in order with the current one."""

    def run() -> None:
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            step()
        current.wait_stream(stream)

    return run


def _captured(step: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
    """A graph of the step, to be replayed on the current stream. What other threads do meanwhile does not break it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay
