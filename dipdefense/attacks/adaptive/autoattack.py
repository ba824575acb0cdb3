"""AutoAttack's own code, an optional package."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

USERS = ("transfer", "square")
"""The attacks that run it."""


@contextmanager
def autoattack(module: str) -> Iterator[Any]:
    """AutoAttack's module of this name, without its warnings of zero gradients.

    Raises:
        ImportError: it is not installed.
    """
    try:
        library = importlib.import_module(f"pyautoattack.{module}")
    except ImportError as error:
        needed = " and ".join(USERS)
        raise ImportError(f'{needed} are AutoAttack\'s attacks: pip install "dipdefense[attacks]"') from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*points with zero gradient")
        yield library


def check_autoattack(attacks: Collection[str]) -> None:
    """Refuse attacks whose package is missing, before any work.

    Args:
        attacks: names of ``dipdefense.attacks.adaptive.ATTACKS``.

    Raises:
        ImportError: one of them is AutoAttack's, which is not installed.
    """
    if not set(USERS).isdisjoint(attacks):
        with autoattack("square"):
            pass
