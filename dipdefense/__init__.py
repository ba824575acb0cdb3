"""Deep Image Prior as a preprocessing defence against adversarial images."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dipdefense.config import DIPConfig
    from dipdefense.purifier import DIPPurifier
    from dipdefense.reconstruct import Reconstruction, reconstruct

__all__ = ["DIPConfig", "DIPPurifier", "Reconstruction", "reconstruct"]
__version__ = "0.1.0"

_MODULES = {
    "DIPConfig": "config",
    "DIPPurifier": "purifier",
    "Reconstruction": "reconstruct",
    "reconstruct": "reconstruct",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used.

    The command line thus answers ``--help`` without waiting for torch.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Python makes each imported submodule an attribute of its package. The public ``reconstruct`` is the function.
        if name == "reconstruct" and isinstance(value, types.ModuleType):
            value = value.reconstruct
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
