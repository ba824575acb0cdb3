"""Which backend runs on a device: chosen by comparison and measurement there.

On an NVIDIA GPU ``backend="auto"`` tries every backend besides torch's operators, once for each kind of request. In
every iteration of the trial it must do what torch's operators do (:mod:`dipdefense.engine.trial`). Of those that pass,
the fastest is taken. A backend that fails a check, raises or runs out of memory is set aside with a warning that says
why.

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
"""The backends that ``auto`` tries besides "torch"."""

SHORTEST = 2 * trial.iterations(len(TRIED))
"""Iterations of the shortest run with a trial; halving the time of a shorter one would save less than a trial takes."""

# A backend that saves less than this share of an iteration is not taken: three iterations give no better timing.
_GAIN = 0.05


class Kind(NamedTuple):
    """Everything that a trial's outcome depends on.

    The configuration is held as text, which always has a hash.
    """

    device: torch.device
    config: str
    shape: tuple[int, ...]
    operands: torch.dtype


class Trial(NamedTuple):
    """A trial's outcome.

    Attributes:
        backend: the one to take.
        seconds: per iteration, for torch's operators and each backend that passed.
        refused: why each of the others was set aside.
    """

    backend: Backend
    seconds: dict[Backend, float]
    refused: dict[Backend, str]


_trials: dict[Kind, Trial] = {}
_lock = threading.Lock()


def chosen(request: Request) -> Backend:
    """The backend that a request asks for, or for "auto" the one its trial chose.

    The outcome is kept for the life of the process. A trial takes 29 iterations at most, 3 % of a run of 1,000, besides
    Triton's compilation, which is cached on disk. Runs of fewer than ``SHORTEST`` iterations use torch's operators,
    even after a trial.

    The caller gives a chunk with fewer images the backend of its batch's other chunks. Otherwise a reconstruction would
    depend on the image's place.
    """
    if request.backend != "auto":
        return request.backend
    request = request.reduced()
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
                # Torch's operators ran out, as the run will. All of its chunks keep this backend, however small.
                warnings.warn(
                    f"the trial of backends ran out of memory with {len(request.images)} images at once; torch's "
                    "operators are used. A smaller batch_size leaves room for it",
                    stacklevel=2,
                )
                return "torch"
        return _trials[kind].backend


def available(device: torch.device, config: DIPConfig | None = None) -> tuple[Backend, ...]:
    """The backends besides "torch" that ``auto`` can try on a device.

    If a configuration is given, only those that fit its networks are returned. Triton's kernels are left out where they
    would be interpreted, which is too slow.
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
    """The trial of these backends against torch's operators.

    Each of the backends must run on the images' device.

    Raises:
        Exception: torch's operators run out of memory or fail in another way.
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
    return "; ".join([f"it raised {type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
