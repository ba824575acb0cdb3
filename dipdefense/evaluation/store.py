"""Where outcomes are kept: one embedded database, which a kill in the middle of a write leaves readable.

A run is known by a hash of everything that decides its outcomes, so outcomes of different configurations never mix.
What merely accompanied the work (commit, versions, hardware, command, time) belongs to a session, and every record
says in which session it was made. The number of images belongs to neither: images come in one seeded order, and a
longer run goes on where a shorter one stopped.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

# Raised whenever the tables below change.
_LAYOUT = 1

_TABLES = """
CREATE TABLE runs (run TEXT PRIMARY KEY, configuration TEXT NOT NULL) STRICT;
CREATE TABLE sessions (session INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, circumstances TEXT NOT NULL)
    STRICT;
CREATE TABLE records (
    run TEXT NOT NULL REFERENCES runs,
    condition TEXT NOT NULL, defence TEXT NOT NULL, budget INTEGER NOT NULL, seed INTEGER NOT NULL,
    position INTEGER NOT NULL, image TEXT NOT NULL,
    label INTEGER NOT NULL, prediction INTEGER NOT NULL, confidence REAL,
    loss REAL, status TEXT NOT NULL, seconds REAL NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions,
    correct INTEGER GENERATED ALWAYS AS (prediction = label) VIRTUAL,
    PRIMARY KEY (run, condition, defence, budget, seed, image)
) STRICT;
"""


class Key(NamedTuple):
    """What one outcome is the outcome of, within a run."""

    condition: str
    defence: str
    budget: int
    seed: int
    image: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one image, under one condition, behind one defence, at one budget, with one seed.

    Attributes:
        condition: "clean", or the attack and its ε in 1/255, such as "fgsm-5".
        defence: "none", "randomisation" or "dip".
        budget: DIP iterations, or passes of randomisation; 0 for no defence.
        seed: the run's seed that this draw of the defence derives from; the first one where nothing is drawn.
        position: the image's place in the run's order, from 0.
        image: the image's name in its data set.
        label: its class index.
        prediction: the predicted class index; −1 where the classifier's output was not finite.
        confidence: the true class's, in [0, 1]; None where the output was not finite.
        loss: mean squared error of the reconstruction at this budget; None for other defences or if not finite.
        status: "ok" or "diverged".
        seconds: the image's share of the time that defending and classifying its batch took.
        session: who made it; see ``Store.sessions``.
    """

    condition: str
    defence: str
    budget: int
    seed: int
    position: int
    image: str
    label: int
    prediction: int
    confidence: float | None
    loss: float | None
    status: str
    seconds: float
    session: int = field(default=0)

    @property
    def key(self) -> Key:
        """What identifies it within its run."""
        return Key(self.condition, self.defence, self.budget, self.seed, self.image)

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
    """

    configuration: Mapping[str, Any]
    records: tuple[Record, ...]
    sessions: Mapping[int, Mapping[str, Any]]


def identity(configuration: Mapping[str, Any]) -> str:
    """The hash that a configuration is known by: the first 16 hexadecimal digits of SHA-256 of its canonical JSON.

    Example:
        >>> identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(_json(configuration).encode()).hexdigest()[:16]


class Store:
    """A file of outcomes.

    Every write is one transaction that is on the disk before the call returns; a process that is killed inside one
    leaves the file as it was before. Several processes may use one file, on one machine: SQLite's write-ahead log
    does not work across a network file system.

    Args:
        path: the file; made, with its folders, where it does not exist.

    Raises:
        ValueError: the file was made by another version of this library, with other tables.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "outcomes.sqlite") as store:
        ...     run = store.open_run({"classifier": "resnet18"})
        ...     store.done(run)
        set()
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.execute("BEGIN IMMEDIATE")
        (layout,) = self._database.execute("PRAGMA user_version").fetchone()
        if layout not in (0, _LAYOUT):
            self._database.close()
            raise ValueError(
                f"{path} has layout {layout}, this version of dipdefense reads layout {_LAYOUT}; "
                "measure into another file, or read it with the version that made it"
            )
        if layout == 0:
            for statement in _TABLES.split(";\n"):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {_LAYOUT}")
        self._database.execute("COMMIT")

    def __enter__(self) -> Self:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._database.close()

    def open_run(self, configuration: Mapping[str, Any]) -> str:
        """The run of this configuration, new or old.

        Args:
            configuration: everything that decides an outcome, in types that JSON has.
        """
        run = identity(configuration)
        self._database.execute("INSERT OR IGNORE INTO runs VALUES (?, ?)", (run, _json(configuration)))
        return run

    def open_session(self, run: str, circumstances: Mapping[str, Any]) -> int:
        """A new session of this run, to be named in the records it makes.

        Args:
            run: from ``open_run``.
            circumstances: commit, versions, hardware and the like, in types that JSON has.
        """
        cursor = self._database.execute("INSERT INTO sessions VALUES (NULL, ?, ?)", (run, _json(circumstances)))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def add(self, run: str, records: Iterable[Record]) -> None:
        """Store outcomes that became known together, all or none; one that is there already stays as it is."""
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        statement = f"INSERT OR IGNORE INTO records (run, {', '.join(COLUMNS)}) VALUES ({marks})"
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(statement, [(run, *astuple(record)) for record in records])
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def restore(self, exported: Run) -> None:
        """Take over the outcomes of an export that are not here yet, with the circumstances they were made in."""
        run = self.open_run(exported.configuration)
        done = self.done(run)
        missing = [record for record in exported.records if record.key not in done]
        sessions = {
            number: self.open_session(run, exported.sessions[number])
            for number in sorted({record.session for record in missing})
        }
        self.add(run, [replace(record, session=sessions[record.session]) for record in missing])

    def done(self, run: str) -> set[Key]:
        """What need not be done again."""
        rows = self._database.execute(f"SELECT {', '.join(Key._fields)} FROM records WHERE run = ?", (run,))
        return {Key(*row) for row in rows}

    def load(self, run: str) -> Run:
        """All that is stored of a run.

        Raises:
            ValueError: there is no such run in this file.
        """
        found = self._database.execute("SELECT configuration FROM runs WHERE run = ?", (run,)).fetchone()
        if found is None:
            known = ", ".join(key for (key,) in self._database.execute("SELECT run FROM runs")) or "none"
            raise ValueError(f"no run {run!r} is stored here; there are: {known}")
        rows = self._database.execute(
            f"SELECT {', '.join(COLUMNS)} FROM records WHERE run = ? "
            "ORDER BY position, condition, defence, budget, seed",
            (run,),
        )
        records = tuple(Record(**dict(zip(COLUMNS, row, strict=True))) for row in rows)
        sessions = self._database.execute(
            "SELECT session, circumstances FROM sessions WHERE run = ?1 AND session IN "
            "(SELECT session FROM records WHERE run = ?1) ORDER BY session",
            (run,),
        )
        return Run(json.loads(found[0]), records, {session: json.loads(text) for session, text in sessions})


def export(run: Run, path: Path) -> None:
    """Write a run as lines of JSON: its configuration and sessions first, then one record a line."""
    head = {"configuration": run.configuration, "sessions": run.sessions}
    lines = [_json(head), *(_json(dict(zip(COLUMNS, astuple(record), strict=True))) for record in run.records)]
    path.write_text("\n".join(lines) + "\n")


def read_export(path: Path) -> Run:
    """The run that ``export`` wrote.

    Raises:
        ValueError: the file is no such export.
    """
    try:
        head, *rows = (json.loads(line) for line in path.read_text().splitlines())
        sessions = {int(session): circumstances for session, circumstances in head["sessions"].items()}
        return Run(head["configuration"], tuple(Record(**row) for row in rows), sessions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no exported run: {error!r}") from error


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
