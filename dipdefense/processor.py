"""The processor at hand, as the system describes it."""

from __future__ import annotations

import functools
from pathlib import Path

# The lines of /proc/cpuinfo that tell models apart, on x86 and on ARM.
_MODEL = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU variant", "CPU part")


@functools.cache
def features() -> frozenset[str]:
    """The features that Linux lists for the first core of an x86 or ARM processor.

    Elsewhere the set is empty.
    """
    return frozenset(next((value.split() for name, value in _lines() if name in ("flags", "Features")), ()))


def models() -> frozenset[tuple[str, str]]:
    """The names and numbers that Linux has for the models of the cores.

    Each comes with the name of its line in /proc/cpuinfo. The set may be empty.
    """
    return frozenset(line for line in _lines() if line[0] in _MODEL)


def _lines() -> list[tuple[str, str]]:
    """The lines of /proc/cpuinfo as names and values."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
