"""The machine that something runs on, in words and bytes."""

from __future__ import annotations

import contextlib
import platform
import re
from pathlib import Path

import torch

_CPU, _STATUS, _CLEAR = Path("/proc/cpuinfo"), Path("/proc/self/status"), Path("/proc/self/clear_refs")


def hardware(device: torch.device) -> str:
    """The name of a GPU, or of the processor with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = re.findall(r"model name\s*: (.*)", _CPU.read_text()) if _CPU.exists() else []
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"


class PeakMemory:
    """The most bytes that a device's memory grows by after this object is made.

    Args:
        device: a GPU, or the CPU for the process's resident memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError):  # not Linux, or a container that refuses it
            _CLEAR.write_text("5")  # forget the peak so far
            self._before = _bytes("VmRSS")

    def grown(self) -> int | None:
        """The peak so far, less the bytes in use at the beginning.

        It is None where the system does not tell.
        """
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return _bytes("VmHWM") - self._before


def _bytes(name: str) -> int:
    # The kernel cuts the process's name at 15 bytes, within a character if need be.
    found = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(errors="replace"), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
