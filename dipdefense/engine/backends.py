"""Which way of iterating runs on a device: chosen by proof and measurement there, never by trust.

On an NVIDIA GPU ``backend="auto"`` tries every other backend beside torch's operators, once for each kind of request:

1. From the same networks without fresh noise it must have the plain operators' losses and outputs, iteration by
   iteration.
2. With fresh noise and networks that stand still, no two outputs may be the same, and they must scatter as much as the
   plain operators' do: the Triton kernels' noise has a generator of its own.
3. Of those that pass, the fastest iteration wins.

A backend that fails a check, raises or runs out of memory is set aside, with a warning that says why. No trial has yet
been run on a GPU. A fault that leaves the GPU unusable for the process, such as an access outside its memory, cannot be
caught here; ``benchmarks/first_gpu.py`` runs every backend in a process of its own first.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dipdefense.checks import Request, check_backend
from dipdefense.config import Backend, DIPConfig
from dipdefense.engine.fitting import Fitting, surroundings

TRIED: tuple[Backend, ...] = ("cudagraphs", "triton")
"""The backends that ``auto`` tries beside "torch"."""

# Iterations of a trial: 9 with the plain operators, 10 with each other backend, 29 in all. That is at most 3 % of a run
# of 1,000; a backend's compilation, done once and kept on the disk, comes on top. The first two calls of a graph are
# its warm-up, so the comparison reaches the replay.
_COMPARED, _TIMED = 4, 3
_NOISY = {"torch": 2, "other": 3}
# A run that is hardly longer than the trial is not worth one.
_SHORTEST = 50

# Differences of rounding grow from one iteration to the next. In fp32 outputs differed by 2e-3 at most after four
# iterations (120 images), in bf16 single pixels by 0.6: there the losses and the mean difference tell.
_LOSSES = {torch.float32: 0.02, torch.bfloat16: 0.1}
_OUTPUTS = {torch.float32: 2e-3, torch.bfloat16: 0.05}
_SCATTER = (0.7, 1.4)


class Kind(NamedTuple):
    """All that a trial's outcome depends on."""

    device: torch.device
    config: DIPConfig
    shape: tuple[int, ...]
    operands: torch.dtype


class Trial(NamedTuple):
    """A trial's outcome.

    Attributes:
        backend: the fastest of those that passed.
        seconds: an iteration's, by each that passed.
        refused: why each other was set aside.
    """

    backend: Backend
    seconds: dict[Backend, float]
    refused: dict[Backend, str]


_trials: dict[Kind, Trial] = {}
_lock = threading.Lock()


class _Failed(Exception):  # noqa: N818 - it never leaves this module
    """A backend's outputs are not the plain operators'."""


def chosen(request: Request) -> Backend:
    """The backend that fits this request: the one asked for, or for "auto" what the device's trial found.

    The outcome is kept for as long as the process lives. Runs of fewer than 50 iterations take torch's operators
    untried. A chunk with fewer images than the others of its batch is to be given the others' backend, so that an
    image's reconstruction does not depend on its place.
    """
    if request.backend != "auto":
        return request.backend
    candidates = available(request.images.device)
    if not candidates or request.budgets[-1] < _SHORTEST or len(request.images) == 0:
        return "torch"
    kind = Kind(request.images.device, request.config, tuple(request.images.shape), request.operands)
    with _lock, surroundings(kind.device):
        if kind not in _trials:
            _trials[kind] = tried(request, candidates)
        return _trials[kind].backend


def available(device: torch.device) -> tuple[Backend, ...]:
    """The backends that could run on a device beside "torch"."""
    return tuple(backend for backend in TRIED if _runs(backend, device))


def _runs(backend: Backend, device: torch.device) -> bool:
    try:
        check_backend(backend, device)
    except ValueError:
        return False
    return True


def tried(request: Request, candidates: Sequence[Backend]) -> Trial:
    """The trial of these backends beside torch's operators, each of which runs on the images' device."""
    still = dataclasses.replace(request.config, noise_std=0.0)
    plain = _Evidence.of(request, still, "torch")
    seconds: dict[Backend, float] = {"torch": plain.seconds}
    refused: dict[Backend, str] = {}
    for backend in candidates:
        try:
            evidence = _Evidence.of(request, still, backend)
            _compare(evidence, plain, request.operands)
            seconds[backend] = evidence.seconds
        except Exception as error:  # whatever a driver, a compiler or an allocator raises
            refused[backend] = str(error) if isinstance(error, _Failed) else f"{type(error).__name__}: {error}"
        # Outside the except block, where nothing holds the failed attempt's tensors.
        gc.collect()
        if request.images.is_cuda:
            torch.cuda.empty_cache()
        if backend in refused:
            warnings.warn(
                f'backend="{backend}" is set aside on {request.images.device} for images of '
                f"{tuple(request.images.shape)}: {refused[backend]}. torch's operators fit them instead",
                RuntimeWarning,
                stacklevel=2,
            )
    return Trial(min(seconds, key=lambda name: seconds[name]), seconds, refused)


class _Evidence(NamedTuple):
    """A backend's first iterations without fresh noise, its outputs with it, and an iteration's time."""

    losses: Tensor
    outputs: Tensor
    noisy: Tensor
    seconds: float

    @classmethod
    def of(cls, request: Request, still: DIPConfig, backend: Backend) -> _Evidence:
        quiet = dataclasses.replace(request, config=still, budgets=(_COMPARED + _TIMED,))
        fitting = start(quiet, backend)
        pairs = list(_iterations(fitting, _COMPARED))
        begun = clock(request.images.device)
        for _ in range(_TIMED):
            fitting()
        seconds = (clock(request.images.device) - begun) / _TIMED
        del fitting
        count = _NOISY.get(backend, _NOISY["other"])
        # Networks that stand still: their outputs differ by the fresh noise alone.
        frozen = dataclasses.replace(request.config, learning_rate=1e-30)
        noisy = [
            output
            for _, output in _iterations(
                start(dataclasses.replace(request, config=frozen, budgets=(count,)), backend), count
            )
        ]
        losses, outputs = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return cls(losses, outputs, torch.stack(noisy), seconds)


def _iterations(fitting: Fitting, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The losses and outputs of the next iterations."""
    for _ in range(count):
        fitting()
        yield fitting.losses.clone(), fitting.outputs.clone()


def _compare(own: _Evidence, plain: _Evidence, operands: torch.dtype) -> None:
    """Refuse what the plain operators do not have.

    Raises:
        _Failed: it says which check, where, and by how much.
    """
    for number, (loss, expected) in enumerate(zip(own.losses, plain.losses, strict=True), start=1):
        if not loss.isfinite().all():
            raise _Failed(f"its loss is not finite at iteration {number}")
        error = ((loss - expected).abs() / expected).max().item()
        if error > _LOSSES[operands]:
            raise _Failed(f"its loss differs by {error:.1%} from the plain operators' at iteration {number}")
    for number, (output, expected) in enumerate(zip(own.outputs, plain.outputs, strict=True), start=1):
        error = (output - expected).abs().flatten(1).mean(dim=1).max().item()
        if not error <= _OUTPUTS[operands]:
            raise _Failed(f"its outputs differ by {error:.2g} from the plain operators' at iteration {number}")
    usual = _steps(plain.noisy).mean(dim=0)
    for number, scatter in enumerate(_steps(own.noisy), start=2):
        # Without fresh noise in the configuration neither moves.
        ratio = (scatter + 1e-12) / (usual + 1e-12)
        if not ((ratio > _SCATTER[0]) & (ratio < _SCATTER[1])).all():
            raise _Failed(
                f"its fresh noise moves the outputs {ratio.min().item():.2g} to {ratio.max().item():.2g} times as much "
                f"as the plain operators' at iteration {number}"
            )


def _steps(outputs: Tensor) -> Tensor:
    """How far each image's output moves from one iteration to the next: (iterations - 1, N)."""
    return (outputs[1:] - outputs[:-1]).flatten(2).std(dim=2)


def start(request: Request, backend: Backend) -> Fitting:
    """The networks of a request, to be fitted by one backend."""
    return Fitting(request, backend)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
