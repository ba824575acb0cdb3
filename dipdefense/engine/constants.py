"""Small tensors that depend on sizes alone, made once.

Those that a captured graph reads can be held as long as the graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec

from torch import Tensor

_Arguments = ParamSpec("_Arguments")

# A service meets images of any size, so the memory must be bounded.
_KEPT = 64

# Of the process and not of a thread: a backward pass on a GPU runs in a thread of its own.
_collections: list[list[Tensor]] = []


def constant(make: Callable[_Arguments, Tensor]) -> Callable[_Arguments, Tensor]:
    """Keep the last results of a function of sizes, dtypes and devices.

    Example:
        >>> import torch
        >>> @constant
        ... def zeros(size: int) -> Tensor:
        ...     return torch.zeros(size)
        >>> zeros(3) is zeros(3)
        True
    """
    cached = functools.lru_cache(maxsize=_KEPT)(make)

    @functools.wraps(make)
    def get(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Tensor:
        value: Tensor = cached(*args, **kwargs)  # type: ignore[arg-type]  # sizes, dtypes and devices are hashable
        for collection in _collections:
            collection.append(value)
        return value

    return get


@contextlib.contextmanager
def collected() -> Iterator[list[Tensor]]:
    """Yield a list that gets every constant which is used meanwhile, in any thread.

    A captured CUDA graph reads the memory that its constants had at the capture: keep the list as long as the graph.
    """
    own: list[Tensor] = []
    _collections.append(own)
    try:
        yield own
    finally:
        # By identity: lists of the same tensors are equal.
        _collections[:] = [each for each in _collections if each is not own]
