"""Folds images into channels and back, so that one grouped operator serves all."""

from __future__ import annotations

from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """(N, C, H, W) to (1, N·C, H, W).

    One image stays as it is and keeps its memory format.
    """
    return x if len(x) == 1 else x.reshape(1, -1, *x.shape[2:])


def unfold(x: Tensor, count: int) -> Tensor:
    """(1, N·C, H, W) to (N, C, H, W)."""
    return x if count == 1 else x.view(count, -1, *x.shape[2:])
