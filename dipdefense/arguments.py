"""Checks of single arguments.

Every error says what was expected and what came, and names the argument; only :func:`device` leaves the name to its
caller.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable
from itertools import islice
from typing import SupportsIndex

import torch

_SHOWN = 80


def integer(name: str, value: object, *, low: int, high: int | None = None, expected: str = "") -> int:
    """An integer of any library in [low, high], as Python's own.

    Booleans are refused.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is outside the range.
    """
    expected = expected or f"an integer of at least {low:,}" + ("" if high is None else f" and at most {high:,}")
    try:
        number = None if _is_bool(value) or not isinstance(value, SupportsIndex) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of several numbers, or of no integers
        number = None
    if number is None:
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {expected}, got {shown(number)}")
    return number


def real(name: str, value: object, *, expected: str, holds: Callable[[float], bool]) -> float:
    """A finite real number for which ``holds`` is true, as Python's own float.

    NumPy's numbers are taken; booleans and tensors are refused.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not as expected.
    """
    message = f"{name} must be {expected}, got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(message)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and holds(number)):
        raise ValueError(message)
    return number


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def callback(name: str, value: object, *, takes: str) -> None:
    """Refuse anything but a function or None.

    Args:
        name: of the argument.
        value: what came.
        takes: its own arguments, in words.

    Raises:
        TypeError: it is something else.
    """
    if not (value is None or callable(value)):
        raise TypeError(f"{name} must be a function of {takes}, got {shown(value)}")


def choice(name: str, value: object, options: Iterable[str]) -> None:
    """Refuse anything but one of the options.

    Raises:
        ValueError: it is something else; the message lists the options.
    """
    options = tuple(options)
    if not (isinstance(value, str) and value in options):
        quoted = [f'"{option}"' for option in options]
        raise ValueError(f"{name} must be {', '.join(quoted[:-1])} or {quoted[-1]}, got {shown(value)}")


def device(name: str) -> torch.device:
    """The device of this name, if this machine has it.

    Raises:
        ValueError: the name is not "cpu", "cuda" or "cuda:N", or this machine lacks the device. The message leaves the
            argument's name to the caller.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"must be cpu, cuda or cuda:N, got {name!r}")
    if found.type == "cuda" and (found.index or 0) >= (there := torch.cuda.device_count()):
        raise ValueError(f"this machine has {there} CUDA devices, got {name!r}; cpu always works")
    return found


def several(name: str, value: object, *, expected: str, most: int) -> tuple[object, ...]:
    """The items of a list, an array, a tensor or any other iterable.

    Raises:
        TypeError: it is not iterable, or is text.
        ValueError: there are more than ``most``; no more are taken, so the iterator may be endless.
    """
    message = f"{name} must be {expected}"
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{message}, got {shown(value)}")
    try:
        items = tuple(islice(value, most + 1))
    except TypeError:  # an array or a tensor of one number: iterable by its type alone
        raise TypeError(f"{message}, got {shown(value)}") from None
    if len(items) > most:
        raise ValueError(f"{message}, at most {most:,} of them, got more")
    return items


def shown(value: object) -> str:
    """A value in one short line, for messages."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of too many digits, a broken object: this must not hide the error itself
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
