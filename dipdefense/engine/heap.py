"""glibc's heap, kept warm while networks are fitted on a CPU.

By default glibc hands large blocks back to the system as soon as they are freed. Every iteration then faults its
activations in again, page by page: some 30,000 faults of half a microsecond at 224×224, several microseconds each on
a virtual machine whose host is short of pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# Where glibc's own adjustment of the two ends up in a process that has freed large blocks. Setting either ends that
# adjustment for good, so this, and not the values at a process's start, is what is put back.
_AFTERWARDS = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}
# Who starts a process with one of these has decided for themselves.
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Until the block ends, freed memory stays with the process, to be used again; then what is free is given back.

    That holds for the whole process. Nothing is done where the C library is another than glibc, or where the
    environment sets the allocator's thresholds.
    """
    global _users
    libc = None if any(name in os.environ for name in _VARIABLES) else _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _users += 1
        for parameter in _AFTERWARDS:
            libc.mallopt(parameter, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for parameter, value in _AFTERWARDS.items():
                    libc.mallopt(parameter, value)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The process's C library, if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows, which has no handle for the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
