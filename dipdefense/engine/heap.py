"""Makes glibc's heap keep freed memory while networks are fitted on a CPU.

Where memory is short, the heap gives it back instead.

By default glibc returns large blocks to the system as soon as they are freed. Every iteration then faults its
activations in again, page by page: some 30,000 faults at 224×224, of half a microsecond each, or several microseconds
on a virtual machine whose host is short of pages.

A heap that keeps its blocks cannot shrink below the topmost block in use. oneDNN's primitives stay for the process's
life, and those of the first iteration lie above freed activations. After memory has run out, everything that needs a
mapping of its own, such as oneDNN's code, lacks that space. :func:`released` is for that case.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Literal

Mode = Literal["released", "kept", "ordinary"]

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# Older glibc refuses a larger threshold of mappings (HEAP_MAX_SIZE / 2), and keeps the one before.
_LARGEST = 2**25
_THRESHOLDS: dict[Mode, dict[int, int]] = {
    # glibc's values at a process's start: a large block has a mapping of its own, which goes as soon as it is freed.
    "released": {_MMAP_THRESHOLD: 2**17, _TRIM_THRESHOLD: 2**17},
    "kept": {_MMAP_THRESHOLD: _NEVER, _TRIM_THRESHOLD: _NEVER},
    # Where glibc's own adjustment of the two ends up in a process that has freed large blocks. Setting either ends
    # that adjustment for good, so this, and not the values at a process's start, is what is put back.
    "ordinary": {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**26},
}
# A user who sets one of these has chosen the allocator's behaviour.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


class _Heap:
    """The heap's behaviour, and the number of users that want each."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = {"released": 0, "kept": 0}
        self.mode: Mode = "ordinary"
        self.libc: ctypes.CDLL | None = None

    def count(self, libc: ctypes.CDLL, wish: Mode, by: int) -> None:
        """Change the number of users of a behaviour.

        "released" holds if anyone wants it, otherwise "kept" if anyone wants that.
        """
        with self.lock:
            self.users[wish] += by
            self.libc = libc
            if self.users["released"]:
                self.switch("released")
            else:
                self.switch("kept" if self.users["kept"] else "ordinary")

    def switch(self, mode: Mode) -> None:
        """Change the behaviour, and give back free memory unless it is to be kept.

        Nothing is done if the behaviour stays the same.
        """
        if self.libc is None or mode == self.mode:
            return
        self.mode = mode
        for parameter, value in _THRESHOLDS[mode].items():
            if not self.libc.mallopt(parameter, value):
                self.libc.mallopt(parameter, _LARGEST)
        if mode != "kept":
            self.libc.malloc_trim(0)


_heap = _Heap()


def kept() -> contextlib.AbstractContextManager[None]:
    """Until the block ends, freed memory stays with the process for reuse.

    At its end free memory is given back. This affects the whole process. Nothing is done where the C library is not
    glibc, or where the environment sets the allocator's thresholds.
    """
    return _behaving("kept")


def released() -> contextlib.AbstractContextManager[None]:
    """Until the block ends, freed memory goes back to the system at once.

    This overrides :func:`kept`, whose conditions apply here too.
    """
    return _behaving("released")


@contextlib.contextmanager
def _behaving(wish: Mode) -> Iterator[None]:
    libc = None if any(name in os.environ for name in _VARIABLES) else _glibc()
    if libc is None:
        yield
        return
    heap = _heap
    heap.count(libc, wish, 1)
    try:
        yield
    finally:
        if heap is _heap:  # a forked child has a new one, which never counted this block
            heap.count(libc, wish, -1)


def _after_fork() -> None:
    """Start a forked process afresh.

    It lacks the parent's other threads, which may use the heap or own the lock.
    """
    global _heap
    inherited, _heap = _heap, _Heap()
    inherited.switch("ordinary")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _glibc() -> ctypes.CDLL | None:
    """The process's C library, if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows, which has no handle for the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
