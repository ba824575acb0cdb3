"""A step that is done over and over on the same tensors, replayed from a CUDA graph instead of launched by Python.

Checked on a CPU as far as one goes; no graph has yet been captured on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

# Calls before the capture. The first compiles and loads all that there is; the second is torch's advice, for whatever
# sets itself up when it is used again.
_WARM_UP = 2

_threads = threading.local()


class Replayed:
    """The step, whose calls are replayed from a graph after the first two.

    Those run as they are, on a stream of their own: they compile kernels and make buffers, which a capture cannot. The
    capture itself executes nothing, so every call does the step once, wherever the capture comes. Whoever calls it
    synchronises before dropping it: the graph's memory must not go back while the GPU still works in it.

    Args:
        step: reads and writes the same tensors at every call; anything that changes from call to call hangs on their
            contents.
        device: the GPU that they are on, the current one whenever this is called.
    """

    def __init__(self, step: Callable[[], object], device: torch.device) -> None:
        self._step = step
        self._stream = _stream(device)
        self._calls = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Do the step once more, in order with the current stream, without waiting for it."""
        self._calls += 1
        if self._calls <= _WARM_UP:
            _apart(self._step, self._stream)
            return
        if self._replay is None:
            self._replay = _captured(self._step, self._stream)
        self._replay()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's stream for capturing on a device, one for all graphs, since cuBLAS keeps a workspace a stream."""
    streams: dict[torch.device, torch.cuda.Stream] = _threads.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def _apart(step: Callable[[], object], stream: torch.cuda.Stream) -> None:
    """The step on another stream, as capturing wants its warm-up, in order with the current one."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        step()
    current.wait_stream(stream)


def _captured(step: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], None]:
    """A graph of the step, to be replayed on the current stream. Other threads' work meanwhile does not break it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay
