"""The circumstances of a measurement: command, commit, hardware and versions."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dipdefense
from dipdefense.machine import hardware

_ROOT = Path(dipdefense.__file__).parents[1]
_PACKAGES = ("torch", "torchvision", "adversarial-robustness-toolbox", "numpy")


def circumstances(device: torch.device) -> dict[str, Any]:
    """Everything that accompanies this process's outcomes without deciding them.

    It is in types that JSON has.

    Args:
        device: where it runs.
    """
    return {
        "command": shlex.join(["python", _script(Path(sys.argv[0]).resolve()), *map(_without_folders, sys.argv[1:])]),
        "commit": _commit(_ROOT),
        "hardware": hardware(device),
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


def weights_digest(network: nn.Module) -> str:
    """The ``digest`` of a network's weights."""
    return digest(value.cpu().numpy().tobytes() for value in network.state_dict().values())


def _script(path: Path) -> str:
    """The script's path, from the folder of benchmarks on; for a package, its folder.

    Example:
        >>> _script(Path("/home/me/dipdefense/benchmarks/speed/__main__.py"))
        'benchmarks/speed'
    """
    path = path.parent if path.name == "__main__.py" else path
    above = next((folder.parent for folder in path.parents if folder.name == "benchmarks"), path.parent)
    return path.relative_to(above).as_posix()


def _without_folders(word: str) -> str:
    """An argument in which a path is cut to its last component.

    The rest says more of the machine than of the run.

    Example:
        >>> _without_folders("--data=/home/me/val"), _without_folders("/home/me/val"), _without_folders("--images=3")
        ('--data=val', 'val', '--images=3')
    """
    if word.startswith("--"):
        option, equals, value = word.partition("=")
    else:
        option, equals, value = (word[:2], "", word[2:]) if word.startswith("-") else ("", "", word)
    return f"{option}{equals}{Path(value).name or value}"


def _commit(root: Path) -> str:
    """The commit of a checkout, "-dirty" if changed since; or that there is none."""
    if not (root / ".git").exists():
        return "installed, no checkout"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
