"""Memory that the process can still get on a CPU.

It is the least that the system, control groups and limits leave. The functions take the root of the file system, so
that tests can set up another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")

# Assumed where the system does not say.
_UNKNOWN = 2**31


def left_to_process(root: Path = _ROOT) -> int:
    """Bytes that allocations can still get; 2 GiB where the system does not say."""
    try:
        # Not the free pages: those of the page cache give way to an allocation.
        available = _fields(root / "proc/meminfo")["MemAvailable"] * 1024
    except (OSError, KeyError):  # not Linux
        return _free_pages()
    return max(0, min([available, *_left_by_groups(root), *_left_by_limits(root)]))


def left_by_limits(root: Path = _ROOT) -> int | None:
    """Bytes that the process's limits on memory leave; None without any.

    These are the limits on its address space (``ulimit -v``) and data (``ulimit -d``).
    """
    left = min(_left_by_limits(root), default=None)
    return None if left is None else max(0, left)


def _free_pages() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows has no sysconf, macOS not these names
        return _UNKNOWN


def _left_by_groups(root: Path) -> Iterator[int]:
    """Bytes left by each of the process's control groups that has a limit.

    The groups may be of version 1 or 2.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, usage, cache = (
                "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )  # fmt: skip
        else:
            continue
        # A container may name a group that it cannot see; its own is then the mount itself.
        group = Path(path.lstrip("/"))
        for folder in (root / mount / inner for inner in (group, *group.parents)):
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max" for no limit
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
                # The usage counts the page cache.
                yield left + _fields(folder / "memory.stat").get(cache, 0)


def _left_by_limits(root: Path) -> Iterator[int]:
    try:
        status = _fields(root / "proc/self/status")
    except OSError:  # not Linux
        return
    import resource  # which Windows does not have

    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY and field in status:
            yield most - status[field] * 1024


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file that has a name and a number on each line.

    Those under /proc are in KiB.
    """
    # The kernel cuts the process's name at 15 bytes, within a character if need be.
    words = (line.replace(":", " ").split() for line in path.read_text(errors="replace").splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}
