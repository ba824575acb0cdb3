"""The compiled kernels of this process.

At the first use they are built, or found in the cache, and checked.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from dipdefense.native import proof
from dipdefense.native.build import UnavailableError, built
from dipdefense.native.library import Kernels

VARIABLE = "DIPDEFENSE_NATIVE"
"""The environment variable that switches the kernels off where it is "0"."""


class Loaded(NamedTuple):
    """The outcome of loading.

    Attributes:
        kernels: None where there are none.
        reason: why there are kernels, or why not; a clause.
    """

    kernels: Kernels | None
    reason: str


_loaded: list[Loaded] = []
_lock = threading.Lock()


def loaded() -> Loaded:
    """The kernels, or why there are none.

    The first call takes a fraction of a second, or seconds where it compiles. The outcome is kept for the life of the
    process, but the environment variable is read at every call.
    """
    if os.environ.get(VARIABLE) == "0":
        return Loaded(None, f"{VARIABLE}=0 switches the compiled kernels off")
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0]


def required() -> Kernels:
    """The kernels, which have passed the comparison with torch's operators.

    Raises:
        ValueError: there are none; the message says why.
    """
    kernels, reason = loaded()
    if kernels is None:
        raise ValueError(f'backend="native" has no kernels on this machine: {reason}; use backend="torch"')
    return kernels


def _load() -> Loaded:
    try:
        compiled = built(Kernels)
        proof.prove(compiled)
    except UnavailableError as error:
        return Loaded(None, str(error))
    except proof.WrongError as error:
        return Loaded(None, f"the compiled kernels are set aside: {error}")
    return Loaded(compiled, "the kernels compiled on this machine do what torch's operators do")
