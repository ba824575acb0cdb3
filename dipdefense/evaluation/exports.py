"""Runs as files: lines of JSON, written all or none, and checked when read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Never

from dipdefense.evaluation import earlier
from dipdefense.evaluation.provenance import digest
from dipdefense.evaluation.records import COLUMNS, Key, Record, Run, as_json, check_record
from dipdefense.files import write_atomically

# The part of a configuration that every measurement has and every report names.
_MEASURED = {"classifier": str, "data": str, "input": list}


class ExportError(ValueError):
    """A file that is not an export, or was changed or cut since it was written.

    The message names the file and the line.
    """


def export(run: Run, path: Path) -> None:
    """Write a run to a file, with one record a line.

    The first line has the configuration, the sessions, the skipped images and a digest of the whole.
    """
    lines = [as_json(_told(record)) for record in run.records]
    head = {"configuration": run.configuration, "sessions": run.sessions, "skipped": run.skipped}
    # As a reader finds it: JSON makes lists of tuples, and strings of the sessions' numbers.
    head = json.loads(as_json(head))
    head["digest"] = _digest(head, lines)
    write_atomically(path, "\n".join([as_json(head), *lines]) + "\n")


def _told(record: Record) -> dict[str, Any]:
    """A record's fields; without its iterations where no rule could end the fit."""
    fields = dict(zip(COLUMNS, astuple(record), strict=True))
    return fields if record.iterations is not None else {k: v for k, v in fields.items() if k != "iterations"}


def read_export(path: Path) -> Run:
    """The run that ``export`` wrote.

    An export of an earlier version has no digest. It is read all the same, each of its fields checked, and has a digest
    once it is exported again.

    Raises:
        ExportError: the file is not such an export, or was changed or cut since; the message names file and line.
    """
    try:
        # Not splitlines(), which also splits at characters that a file's name may have.
        first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        _refuse(path, 1, str(error))
    head = _object(path, 1, first)
    configuration, sessions = head.get("configuration"), head.get("sessions")
    skipped, stated = head.get("skipped", []), head.pop("digest", None)
    if not isinstance(configuration, dict) or not all(
        isinstance(configuration.get(n), k) for n, k in _MEASURED.items()
    ):
        _refuse(path, 1, f"the configuration has no {', '.join(_MEASURED)}")
    if not isinstance(sessions, dict) or not all(
        name.isascii() and name.isdigit() and isinstance(told, dict) for name, told in sessions.items()
    ):
        _refuse(path, 1, "the sessions by number are missing")
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        _refuse(path, 1, "the skipped images are no list of names")
    by_number = {int(name): told for name, told in sessions.items()}
    records = tuple(_records(path, lines, by_number))
    if stated is None:
        configuration = earlier.modern_configuration(configuration)
        by_number = {number: earlier.modern_circumstances(told) for number, told in by_number.items()}
    elif stated != _digest(head, lines):
        _refuse(path, 1, f"the file was changed or cut after its export, whose digest was {stated!r}")
    return Run(configuration, records, by_number, tuple(skipped))


def _records(path: Path, lines: Iterable[str], sessions: Mapping[int, Any]) -> Iterator[Record]:
    """The records, each checked by itself and against those before it."""
    lines_of: dict[Key, int] = {}
    images: dict[str, tuple[int, int, str]] = {}
    places: dict[int, str] = {}
    for number, line in enumerate(lines, start=2):
        values = _object(path, number, line)
        try:
            record = check_record(values)
        except ValueError as error:
            _refuse(path, number, str(error), error)
        if record.session not in sessions:
            _refuse(path, number, f"the first line has no session {record.session}")
        if record.key in lines_of:
            _refuse(path, number, f"line {lines_of[record.key]} has this outcome already")
        lines_of[record.key] = number
        known = record.position, record.label, record.content
        if images.setdefault(record.image, known) != known:
            _refuse(path, number, f"position, label or content of {record.image!r} are others than in a line before")
        if places.setdefault(record.position, record.image) != record.image:
            _refuse(path, number, f"position {record.position} is that of {places[record.position]!r}")
        yield record


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # the latter from brackets nested too deep
        _refuse(path, number, f"it is not JSON ({error})", error)
    if not isinstance(value, dict):
        _refuse(path, number, "it is not an object of JSON")
    return value


def _no_number(constant: str) -> Never:
    raise ValueError(f"{constant} is not a number")


def _digest(head: Mapping[str, Any], lines: Iterable[str]) -> str:
    return digest(f"{line}\n".encode() for line in (as_json(head), *lines))


def _refuse(path: Path, line: int, reason: str, error: Exception | None = None) -> Never:
    raise ExportError(f"{path}, line {line}: {reason}{'; it holds no exported run' if line == 1 else ''}") from error
