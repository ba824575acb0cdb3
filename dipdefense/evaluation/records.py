"""Outcomes as data: records, and the run that they belong to.

There is one record an image, condition, defence, budget and seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_args

from dipdefense.reconstruct import Status

# SQLite's integers have 64 bits.
_LARGEST = 2**63 - 1


class Key(NamedTuple):
    """Identifies one outcome within a run."""

    condition: str
    defence: str
    budget: int
    seed: int
    image: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one image, condition, defence, budget and seed.

    Attributes:
        condition: "clean", or the attack and its ε in 1/255, such as "fgsm-5".
        defence: of ``DEFENCES``, or another experiment's own.
        budget: DIP iterations, passes of randomisation, or the low-pass filter's factor; 0 for no defence.
        seed: the run's seed that the defence's seed derives from; the first one where nothing is random.
        position: the image's place in the run's order, from 0.
        image: the image's id in its data set.
        content: digest of its pixels and label (``content_digest``); "" where it was stored before there were any.
        label: its class index.
        prediction: the predicted class index; −1 where the classifier's output was not finite.
        confidence: the true class's, in [0, 1]; None where the output was not finite.
        loss: mean squared error of the reconstruction at this budget; None for other defences or if not finite.
        status: "ok" or "diverged".
        seconds: the image's share of the time that defending and classifying its batch took.
        session: the session that measured it; see ``Run.sessions``.
        iterations: those of the image's fit, where a rule could end it before the budget; else None.
    """

    condition: str
    defence: str
    budget: int
    seed: int
    position: int
    image: str
    content: str = ""
    label: int
    prediction: int
    confidence: float | None
    loss: float | None
    status: str
    seconds: float
    session: int = 0
    iterations: int | None = None

    @property
    def key(self) -> Key:
        """Identifies it within its run."""
        return Key(self.condition, self.defence, self.budget, self.seed, self.image, self.content)

    @property
    def correct(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction == self.label


COLUMNS = tuple(f.name for f in fields(Record))


@dataclass(frozen=True)
class Run:
    """Everything that is stored of one run: all that a report is made from.

    Attributes:
        configuration: what decides the outcomes.
        records: by position, then condition, defence, budget and seed.
        sessions: the circumstances of each session that made one of the records.
        skipped: ids of the images that were left out because they could not be read.
    """

    configuration: Mapping[str, Any]
    records: tuple[Record, ...]
    sessions: Mapping[int, Mapping[str, Any]]
    skipped: tuple[str, ...] = ()


def check_record(values: object) -> Record:
    """A record from what JSON has of it, each field checked.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of range; the message names it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a record is an object with the fields {', '.join(COLUMNS)}; got {values!r}")
    # The first stores and exports had no digests, and those of runs without early stopping have no iterations.
    values = {"content": "", "iterations": None, **values}
    if wrong := sorted(values.keys() ^ set(COLUMNS)):
        raise ValueError(f"missing or unknown: {', '.join(wrong)}; a record has the fields {', '.join(COLUMNS)}")
    for name, (fits, expected) in _FIELDS.items():
        if not fits(values[name]):
            raise ValueError(f"{name} must be {expected}, got {values[name]!r}")
    if (values["prediction"] == -1) != (values["confidence"] is None):
        raise ValueError("prediction is -1 exactly where confidence is null, for an output that was not finite")
    return Record(**values)


def identity(configuration: Mapping[str, Any]) -> str:
    """The name of a configuration, from a digest of its canonical JSON.

    It is the first 16 hexadecimal digits of the SHA-256.

    Example:
        >>> identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(as_json(configuration).encode()).hexdigest()[:16]


def as_json(value: Any) -> str:
    """Canonical JSON on one line: sorted keys, no NaN."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def _is_integer(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= _LARGEST


def _is_number(low: float, high: float) -> Callable[[Any], bool]:
    # A whole number may have lost its point on the way; the bound keeps it from overflowing as a float.
    return lambda value: type(value) in (int, float) and low <= value <= high and abs(value) < math.inf


def _is_name(value: Any) -> bool:
    return type(value) is str and value != ""


_COUNT = _is_integer(0), f"an integer in [0, {_LARGEST}]"
_NAME = _is_name, "a non-empty string"
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "condition": _NAME,
    "defence": _NAME,
    "budget": _COUNT,
    "seed": _COUNT,
    "position": _COUNT,
    "image": _NAME,
    "content": (lambda value: type(value) is str, "a string"),
    "label": _COUNT,
    "prediction": (_is_integer(-1), f"an integer in [-1, {_LARGEST}]"),
    "confidence": (lambda value: value is None or _is_number(0, 1)(value), "a number in [0, 1] or null"),
    "loss": (lambda value: value is None or _is_number(0, 1e300)(value), "a finite number of at least 0, or null"),
    "status": (lambda value: value in get_args(Status), f"one of {', '.join(get_args(Status))}"),
    "seconds": (_is_number(0, 1e300), "a finite number of at least 0"),
    "session": _COUNT,
    "iterations": (lambda value: value is None or _COUNT[0](value), f"{_COUNT[1]}, or null"),
}
