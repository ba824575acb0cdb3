"""Peak memory of one contender on a CPU, measured in a process of its own.

A process's peak never falls and so cannot tell two contenders apart; the benchmark starts this module once for each.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dipdefense.config import DIPConfig
from speed.contenders import contenders
from speed.processes import start_module

_STATUS = Path("/proc/self/status")
_ITERATIONS = 3


def peak_in_fresh_process(contender: str, config: DIPConfig, *, batch: int, side: int) -> float | None:
    """MiB by which fitting raises the process's peak memory; None without /proc.

    Raises:
        RuntimeError: the process failed; the message has its stderr.
    """
    if not _STATUS.exists():
        return None
    task = {"contender": contender, "config": asdict(config), "batch": batch, "side": side}
    process = start_module("speed.memory", task)
    printed, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the peak memory of {contender} was not measured:\n{complaint}")
    return float(printed)


def _measure(task: Mapping[str, Any]) -> float:
    config = DIPConfig.from_json(task["config"])
    fit = contenders(torch.device("cpu"))[task["contender"]].fit
    images = torch.rand(task["batch"], 3, task["side"], task["side"])
    # Excludes the memory that torch allocates at its first use.
    fit(torch.rand(1, 3, 32, 32), budgets=(2,), config=DIPConfig(channels=4), on_iteration=lambda: None)
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kibibytes("VmRSS")
    fit(images, budgets=(_ITERATIONS,), config=config, on_iteration=lambda: None)
    return (_kibibytes("VmHWM") - before) / 1024


def _kibibytes(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
