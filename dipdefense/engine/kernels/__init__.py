"""Triton kernels for one GPU iteration of N networks. Optional: nothing uses them unless asked to.

Activations are (N, H, W, C), contiguous, in bf16 (or fp32); the image is a grid axis of every kernel, so that each
image meets its own weights in a matrix product of its own. A tensor is written once, as its convolution's raw sums:
normalisation and LeakyReLU happen when the next kernel loads it, statistics are taken from the accumulators before
they leave the registers, and likewise backwards. The module ``engine`` strings the kernels together to a whole
network's forward and backward pass, and ``iteration`` those to the iteration that ``reconstruct(backend="triton")``
replays.

Every kernel has been checked in Triton's interpreter on a CPU and compiles for sm_90. None has yet been run on a GPU,
and no time has been measured.

Triton is imported by this package's modules, never by the package itself.
"""

from __future__ import annotations

import importlib.util
import os

import torch

_MINIMUM_CAPABILITY = (8, 0)


def available(device: torch.device | str) -> bool:
    """Whether the kernels can run there: Triton is installed, and the device is a GPU with bf16 (sm_80 or later).

    Example:
        >>> available("cpu")
        False
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= _MINIMUM_CAPABILITY


def interpreted() -> bool:
    """Whether Triton was asked to interpret its kernels: on any device, but so slowly that it serves checks alone."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require(device: torch.device) -> None:
    """Refuse a device where the kernels do not run.

    Raises:
        ValueError: Triton is missing, or the device is no GPU that they are written for; it says what to do.
    """
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            'backend="triton" needs Triton, which is not installed; install it (pip install triton) or use '
            'backend="torch"'
        )
    if interpreted() or available(device):
        return
    if device.type != "cuda" or torch.version.cuda is None:
        raise ValueError(
            f'backend="triton" needs the images on an NVIDIA GPU, got images on {device}; move them there '
            '(images.to("cuda")) or use backend="torch"'
        )
    raise ValueError(
        f'backend="triton" needs a GPU of compute capability {".".join(map(str, _MINIMUM_CAPABILITY))} or later, and '
        f'{device} has {".".join(map(str, torch.cuda.get_device_capability(device)))}; use backend="torch"'
    )
