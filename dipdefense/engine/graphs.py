"""Replays work that is repeated on the same tensors from a CUDA graph.

Python then launches one graph instead of every kernel.

Checked on a CPU, except for the graph itself; no graph has yet been captured on a GPU.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from dipdefense.engine import constants

# Calls before the capture. The first compiles and loads everything. Torch advises several, since some libraries finish
# their setup at a later call.
_WARM_UP = 2

_streams: dict[torch.device, torch.cuda.Stream] = {}

alone = threading.RLock()
"""Held by the one thread of the library that captures, warms up or waits for a whole GPU.

A wait for the whole device, in any thread, ends a capture there with an error; and all warm-ups and captures of a
device use one stream. Replays, which come on the caller's stream, need not wait.
"""


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
        """Do the work once, in order with the current stream, without waiting for it."""
        self._calls += 1
        if self._calls <= _WARM_UP:
            with alone:
                _apart(self._step, self._stream)
            return
        if self._replay is None:
            # The graph reads the constants even after their cache has dropped them.
            with alone, constants.collected() as self._kept:
                self._replay = _captured(self._step, self._stream)
        self._replay()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The capturing stream of a device, shared by all graphs.

    More streams would cost memory: cuBLAS keeps a workspace for every stream and thread.
    """
    with alone:
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return _streams[device]


def _apart(step: Callable[[], object], stream: torch.cuda.Stream) -> None:
    """Run the step on another stream, in order with the current one.

    A capture's warm-up must run on another stream.
    """
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            step()
    finally:
        # After an error too: what the step has launched still uses its tensors.
        current.wait_stream(stream)


def _captured(step: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], None]:
    """The replay of a graph of the step.

    Other threads may launch work during the capture, but not wait for the GPU.
    """
    before = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    collecting = gc.isenabled()
    # A collection during the capture could unload a kernel or free a graph, which a capture does not allow.
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except BaseException as error:
        # torch leaves its capturing stream current where the end of the capture fails.
        torch.cuda.set_stream(before)
        error.add_note(
            "the capture of a CUDA graph failed, after which older versions of torch neither draw random numbers on "
            'the GPU nor free its memory: if that happens, start another process, with backend="torch"'
        )
        raise
    finally:
        if collecting:
            gc.enable()
    return graph.replay
