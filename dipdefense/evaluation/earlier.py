"""Stores and exports of the first layout, brought up to date.

Layout 1 had a digest of all the data set's ids and labels in a run's configuration, where one file more or less made
another run, and no digest of an image's pixels. Its outcomes are trusted by the images' names. Their sessions say so,
and so does every report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from dipdefense.evaluation.records import COLUMNS, as_json, identity

_TRUSTED = {"images": "trusted by name, stored without a digest of their pixels"}
_COLUMNS = ", ".join(column for column in COLUMNS if column not in ("content", "iterations"))


def modern_configuration(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of layout 1 as it is written now."""
    # The backend was left out where it was torch's.
    return {"backend": "torch"} | {name: value for name, value in configuration.items() if name != "images"}


def modern_circumstances(circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """A session's circumstances of layout 1 as they are written now."""
    return dict(circumstances) | _TRUSTED


def upgrade(execute: Callable[..., list[tuple[Any, ...]]], create_records: str) -> None:
    """Bring a store of layout 1 up to date, inside the caller's transaction.

    Two runs that differed in nothing but the files of their data sets become one. Where both have an outcome, that of
    the earlier run stays.

    Args:
        execute: runs one statement with its parameters on the database, and returns the rows.
        create_records: the statement that makes today's table of records.
    """
    execute("ALTER TABLE records RENAME TO earlier")
    execute(create_records)
    moved = []
    for old, text in execute("SELECT run, configuration FROM runs ORDER BY rowid"):
        configuration = modern_configuration(json.loads(text))
        run = identity(configuration)
        execute("INSERT OR IGNORE INTO runs VALUES (?, ?)", run, as_json(configuration))
        for session, circumstances in execute("SELECT session, circumstances FROM sessions WHERE run = ?", old):
            told = as_json(modern_circumstances(json.loads(circumstances)))
            execute("UPDATE sessions SET run = ?, circumstances = ? WHERE session = ?", run, told, session)
        execute(
            f"INSERT OR IGNORE INTO records (run, content, {_COLUMNS}) "
            f"SELECT ?, '', {_COLUMNS} FROM earlier WHERE run = ?",
            run,
            old,
        )
        moved += [old] if old != run else []
    execute("DROP TABLE earlier")
    for old in moved:
        execute("DELETE FROM runs WHERE run = ?", old)
