"""Which backend runs on a device: chosen by proof and measurement there, never by trust.

On an NVIDIA GPU ``backend="auto"`` tries every backend beside torch's operators, once for each kind of request: it must
do in every iteration what torch's operators do (:mod:`dipdefense.engine.trial`). Of those that pass, the fastest is
taken. A backend that fails a check, raises or runs out of memory is set aside with a warning that says why.

No trial has yet been run on a GPU. A fault that leaves the GPU unusable to the process, such as an access outside its
memory, cannot be caught here, and neither can a kernel that never ends. ``benchmarks/first_gpu.py`` runs each backend
in a process of its own first.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from dipdefense.checks import Request, check_backend, triton_interpreted
from dipdefense.config import Backend, DIPConfig
from dipdefense.engine import trial
from dipdefense.engine.fitting import surroundings
from dipdefense.engine.memory import is_out_of_memory

TRIED: tuple[Backend, ...] = ("cudagraphs", "triton")
"""The backends that ``auto`` tries beside "torch"."""

SHORTEST = 2 * trial.iterations(len(TRIED))
"""Iterations of the shortest run that there is a trial for: below, halving its time would not save what that costs."""

# A backend that saves less than this share of an iteration is not taken: three iterations are not timed better.
_GAIN = 0.05


class Kind(NamedTuple):
    """All that a trial's outcome depends on; the configuration as its text, which has a hash whatever is in it."""

    device: torch.device
    config: str
    shape: tuple[int, ...]
    operands: torch.dtype


class Trial(NamedTuple):
    """A trial's outcome.

    Attributes:
        backend: the one to take.
        seconds: an iteration's, by torch's operators and each backend that passed.
        refused: why each other was set aside.
    """

    backend: Backend
    seconds: dict[Backend, float]
    refused: dict[Backend, str]


_trials: dict[Kind, Trial] = {}
_lock = threading.Lock()


def chosen(request: Request) -> Backend:
    """The backend for this request: the one asked for, or for "auto" what the device's trial found.

    The outcome is kept for as long as the process lives. A trial takes 29 iterations at most, 3 % of a run of 1,000;
    Triton's compilation comes on top, and is kept on the disk. Runs of fewer than ``SHORTEST`` iterations have torch's
    operators, whether there was a trial before or not.

    A chunk with fewer images than the others of its batch is to be given the others' backend, so that no
    reconstruction depends on the image's place.
    """
    if request.backend != "auto":
        return request.backend
    candidates = available(request.images.device, request.config)
    if len(request.images) == 0 or not candidates or request.budgets[-1] < SHORTEST:
        return "torch"
    kind = Kind(request.images.device, repr(request.config), tuple(request.images.shape), request.operands)
    with _lock, surroundings(kind.device):
        if kind not in _trials:
            try:
                _trials[kind] = tried(request, candidates)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # Of torch's operators, and so will the run. It is repeated with fewer images, which are another kind.
                return "torch"
        return _trials[kind].backend


def available(device: torch.device, config: DIPConfig | None = None) -> tuple[Backend, ...]:
    """The backends beside "torch" that could fit a network on a device, where one is given.

    In Triton's interpreter, the kernels are too slow.
    """
    left_out = "triton" if triton_interpreted() else None
    return tuple(backend for backend in TRIED if backend != left_out and _runs(backend, device, config))


def _runs(backend: Backend, device: torch.device, config: DIPConfig | None) -> bool:
    try:
        check_backend(backend, device, config)
    except ValueError:
        return False
    return True


def tried(request: Request, candidates: Sequence[Backend]) -> Trial:
    """The trial of these backends, each of which runs on the images' device, beside torch's operators.

    Raises:
        Exception: torch's operators run out of memory, or fail in another way.
    """
    plain = trial.time_plain(request)
    trial.release(request.images.device)
    seconds: dict[Backend, float] = {"torch": plain}
    refused: dict[Backend, str] = {}
    for backend in candidates:
        try:
            seconds[backend] = trial.prove(request, backend)
        except Exception as error:
            refused[backend] = _reason(error)
        # Outside the except block, where nothing holds the failed attempt's tensors.
        try:
            trial.release(request.images.device)
        except RuntimeError as error:
            raise RuntimeError(
                f'the trial of backend="{backend}" left {request.images.device} unusable to this process; start '
                'another one and use backend="torch" there'
            ) from error
        if backend in refused:
            warnings.warn(
                f'backend="auto" sets "{backend}" aside on {request.images.device} for images of '
                f"{tuple(request.images.shape)}: {refused[backend]}",
                RuntimeWarning,
                stacklevel=2,
            )
    fastest = min(seconds, key=lambda name: seconds[name])
    return Trial(fastest if seconds[fastest] <= (1 - _GAIN) * plain else "torch", seconds, refused)


def _reason(error: Exception) -> str:
    if isinstance(error, trial.Mismatch):
        return str(error)
    if is_out_of_memory(error):
        return "it ran out of memory"
    return f"it raised {type(error).__name__}: {error}"
