"""The circumstances of a measurement: command, commit, hardware and versions."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dipdefense

_PACKAGES = ("torch", "torchvision", "adversarial-robustness-toolbox", "numpy")


def circumstances(device: torch.device) -> dict[str, Any]:
    """Everything that accompanies the outcomes of this process without deciding them, in types that JSON has.

    Args:
        device: where it runs.
    """
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        cpu = Path("/proc/cpuinfo")
        models = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
        hardware = f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"
    # Folders are named without the way to them, which says more of the machine than of the run.
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "commit": _commit(Path(dipdefense.__file__).parents[1]),
        "hardware": hardware,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
    }


def digest(parts: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of these bytes.

    Example:
        >>> digest([b"a", b"b"]) == digest([b"ab"])
        True
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def _commit(root: Path) -> str:
    """The commit of a checkout, "-dirty" if it was changed since; or that there is none."""
    if not (root / ".git").exists():
        return "installed, no checkout"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
