"""Replays work that is repeated on the same tensors from a CUDA graph, instead of launching it from Python.

Checked on a CPU, except for the graph itself; no graph has yet been captured on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from dipdefense.engine import constants

# Calls before the capture. The first compiles and loads everything. Torch advises several, since some libraries finish
# their setup at a later call.
_WARM_UP = 2

_threads = threading.local()


class Replayed:
    """A function whose calls are replayed from a graph after the first two.

    The first two run it directly, on a stream of their own: they compile kernels and allocate buffers, which a capture
    cannot. The capture executes nothing and is followed by a replay, so every call does the work once. The caller
    synchronises before dropping this object, because the graph's memory must not be freed while the GPU uses it.

    Args:
        step: reads and writes the same tensors at every call; only their contents may change between calls.
        device: the GPU that they are on, and the current device at every call.
    """

    def __init__(self, step: Callable[[], object], device: torch.device) -> None:
        self._step = step
        self._stream = _stream(device)
        self._calls = 0
        self._replay: Callable[[], None] | None = None
        self._kept: list[Tensor] = []

    def __call__(self) -> None:
        """Do the work once more, in order with the current stream, without waiting for it."""
        self._calls += 1
        if self._calls <= _WARM_UP:
            _apart(self._step, self._stream)
            return
        if self._replay is None:
            # The graph reads the constants even after their cache has dropped them.
            with constants.collected() as self._kept:
                self._replay = _captured(self._step, self._stream)
        self._replay()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's capturing stream on a device, one for all of its graphs: cuBLAS keeps a workspace for every stream.

    Two threads that capture on one stream would meet. ``DataParallel`` has new threads at every call, and so uses up to
    the 32 streams of torch's pool.
    """
    streams: dict[torch.device, torch.cuda.Stream] = _threads.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def _apart(step: Callable[[], object], stream: torch.cuda.Stream) -> None:
    """Run the step on another stream, as a capture's warm-up must be, in order with the current one."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        step()
    current.wait_stream(stream)


def _captured(step: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], None]:
    """The replay of a graph of the step. Other threads may use the GPU during the capture."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay
