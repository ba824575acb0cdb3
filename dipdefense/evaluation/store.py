"""Outcomes in an embedded database, which a kill during a write leaves readable.

A run is known by a hash of everything that decides its outcomes, so outcomes of different configurations never mix. An
image is known by its id and by a digest of its pixels and label, and never by the other images of its data set. The
commit, versions, hardware, command and time belong to a session, and every record names its session. The number of
images belongs to neither: images come in one seeded order, and a longer run resumes where a shorter one stopped.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dipdefense.evaluation import earlier
from dipdefense.evaluation.records import COLUMNS, Key, Record, Run, as_json, check_record, identity

# Raised whenever the tables below change.
_LAYOUT = 3

_RECORDS = """
CREATE TABLE records (
    run TEXT NOT NULL REFERENCES runs,
    condition TEXT NOT NULL, defence TEXT NOT NULL, budget INTEGER NOT NULL, seed INTEGER NOT NULL,
    position INTEGER NOT NULL, image TEXT NOT NULL, content TEXT NOT NULL,
    label INTEGER NOT NULL, prediction INTEGER NOT NULL, confidence REAL,
    loss REAL, status TEXT NOT NULL, seconds REAL NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions, iterations INTEGER,
    correct INTEGER GENERATED ALWAYS AS (prediction = label) VIRTUAL,
    PRIMARY KEY (run, condition, defence, budget, seed, image, content)
) STRICT
"""
_TABLES = (
    "CREATE TABLE runs (run TEXT PRIMARY KEY, configuration TEXT NOT NULL) STRICT",
    """
    CREATE TABLE sessions (session INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, circumstances TEXT NOT NULL)
    STRICT
    """,
    _RECORDS,
)

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process has been writing to it all the while; let it end, then call again",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable, or give another folder",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder writable, or give another folder",
    sqlite3.SQLITE_FULL: "free some space and call again; everything stored before is kept",
    sqlite3.SQLITE_IOERR: "check the disk and call again; everything stored before is kept",
    sqlite3.SQLITE_CORRUPT: "move the file away; a new store takes up the exported records beside it",
    sqlite3.SQLITE_NOTADB: "this is not a store of outcomes; give another folder, or move the file away",
    sqlite3.SQLITE_ERROR: "this database has other tables than a store of outcomes; give another folder",
}


class Attacked(NamedTuple):
    """An image under a condition.

    Attributes:
        condition: its name.
        image: its id.
        content: the digest of its pixels and label before the attack.
    """

    condition: str
    image: str
    content: str


class StoreError(Exception):
    """A store that cannot be used; the message names file, problem and way out."""


class Store:
    """A file of outcomes.

    Every write is one transaction that is on the disk before the call returns; a process that is killed inside one
    leaves the file as it was before. Several processes may use one file, on one machine: SQLite's write-ahead log
    does not work across a network file system. A file of an earlier layout is upgraded when it is opened.

    Args:
        path: the file; made, with its folders, where it does not exist.
        patience: seconds to wait for another process that is writing.

    Raises:
        StoreError: here and from every method: the file cannot be read or written, or is not a store that this
            version of the library reads.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "outcomes.sqlite") as store:
        ...     run = store.open_run({"classifier": "resnet18"})
        ...     store.done(run)
        set()
    """

    def __init__(self, path: Path | str, *, patience: float = 60) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path}: its folder cannot be made ({error}); give another folder") from error
        with self._named():
            self._database = sqlite3.connect(self.path, timeout=patience, isolation_level=None)
        try:
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = FULL")
            self._execute("PRAGMA foreign_keys = ON")
            with self._transaction():
                self._open_tables()
        except BaseException:
            self._database.close()
            raise

    def _open_tables(self) -> None:
        ((layout,),) = self._execute("PRAGMA user_version")
        if layout not in range(_LAYOUT + 1):
            raise StoreError(
                f"{self.path} has layout {layout}, this version of dipdefense reads layout {_LAYOUT}; "
                "measure into another folder, or read it with the version that made it"
            )
        if layout == 0:
            if self._execute("SELECT name FROM sqlite_master"):
                raise StoreError(f"{self.path} is a database of something else; give another folder")
            for statement in _TABLES:
                self._execute(statement)
        elif layout == 1:
            earlier.upgrade(self._execute, _RECORDS)
        elif layout == 2:
            self._execute("ALTER TABLE records ADD COLUMN iterations INTEGER")
        self._execute(f"PRAGMA user_version = {_LAYOUT}")

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
        self._execute("INSERT OR IGNORE INTO runs VALUES (?, ?)", run, as_json(configuration))
        return run

    def open_session(self, run: str, circumstances: Mapping[str, Any]) -> int:
        """A new session of this run, to be named in the records it makes.

        Args:
            run: from ``open_run``.
            circumstances: commit, versions, hardware and the like, in types that JSON has.
        """
        statement = "INSERT INTO sessions VALUES (NULL, ?, ?) RETURNING session"
        ((session,),) = self._execute(statement, run, as_json(circumstances))
        return int(session)

    def add(self, run: str, records: Iterable[Record]) -> None:
        """Store outcomes that became known together, all or none.

        An outcome that is stored already stays as it is.

        Raises:
            ValueError: a field of a record is of another type or out of range.
        """
        checked = [check_record(vars(record)) for record in records]
        with self._transaction():
            self._insert(run, checked)

    def restore(self, exported: Run) -> None:
        """Take over the outcomes that only an export has, with their circumstances."""
        run = self.open_run(exported.configuration)
        with self._transaction():
            done = self.done(run)
            # An outcome stored without a digest is the same one, even where the image has been given a digest since.
            named = {key[:-1] for key in done}
            missing = [
                record
                for record in exported.records
                if record.key not in done and (record.content or record.key[:-1] not in named)
            ]
            sessions = {
                number: self.open_session(run, exported.sessions[number])
                for number in sorted({record.session for record in missing})
            }
            self._insert(run, (replace(record, session=sessions[record.session]) for record in missing))

    def adopt(self, run: str, images: Mapping[str, tuple[int, str]]) -> list[str]:
        """Give outcomes that were stored without a digest the digest of their image.

        That is the image now found under their name.

        Args:
            run: from ``open_run``.
            images: by id, the label and the content's digest of each.

        Returns:
            The ids of those that have outcomes of another label or content alone, which stay stored and are not used.
        """
        changed = []
        with self._transaction():
            stored: dict[str, set[tuple[int, str]]] = {}
            statement = "SELECT DISTINCT image, label, content FROM records WHERE run = ?"
            for image, label, content in self._execute(statement, run):
                stored.setdefault(image, set()).add((label, content))
            for image, (label, content) in images.items():
                own = stored.get(image, set())
                if own - {(label, ""), (label, content)}:
                    changed += [] if (label, content) in own else [image]
                elif (label, "") in own:
                    statement = "UPDATE OR IGNORE records SET content = ? WHERE run = ? AND image = ? AND content = ''"
                    self._execute(statement, content, run, image)
        return changed

    def done(self, run: str) -> set[Key]:
        """The outcomes that are stored."""
        return {Key(*row) for row in self._execute(f"SELECT {', '.join(Key._fields)} FROM records WHERE run = ?", run)}

    def batches(self, run: str) -> dict[Attacked, set[range | None]]:
        """The batches in which each image was attacked, as positions in the run's order.

        None stands for a batch that is not known.
        """
        statement = (
            "SELECT DISTINCT condition, image, content, position, circumstances FROM records JOIN sessions "
            "USING (session) WHERE records.run = ?"
        )
        found: dict[Attacked, set[range | None]] = {}
        for condition, image, content, position, circumstances in self._execute(statement, run):
            told = json.loads(circumstances)
            own = None
            if "chosen" in told:
                start = position - position % told["batch"]
                own = range(start, min(start + told["batch"], told["chosen"]))
            found.setdefault(Attacked(condition, image, content), set()).add(own)
        return found

    def forget(self, run: str, attacked: Iterable[Attacked]) -> None:
        """Drop every outcome of these images under these conditions."""
        with self._transaction():
            for each in attacked:
                statement = "DELETE FROM records WHERE run = ? AND condition = ? AND image = ? AND content = ?"
                self._execute(statement, run, *each)

    def is_empty(self) -> bool:
        """Whether no outcome of any run is stored."""
        return not self._execute("SELECT 1 FROM records LIMIT 1")

    def load(self, run: str) -> Run:
        """All that is stored of a run.

        Raises:
            ValueError: there is no such run in this file.
        """
        found = self._execute("SELECT configuration FROM runs WHERE run = ?", run)
        if not found:
            known = ", ".join(key for (key,) in self._execute("SELECT run FROM runs")) or "none"
            raise ValueError(f"no run {run!r} is stored in {self.path}; there are: {known}")
        rows = self._execute(
            f"SELECT {', '.join(COLUMNS)} FROM records WHERE run = ? "
            "ORDER BY position, condition, defence, budget, seed",
            run,
        )
        records = tuple(Record(**dict(zip(COLUMNS, row, strict=True))) for row in rows)
        sessions = self._execute(
            "SELECT session, circumstances FROM sessions WHERE run = ?1 AND session IN "
            "(SELECT session FROM records WHERE run = ?1) ORDER BY session",
            run,
        )
        return Run(json.loads(found[0][0]), records, {session: json.loads(text) for session, text in sessions})

    def _insert(self, run: str, records: Iterable[Record]) -> None:
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        statement = f"INSERT OR IGNORE INTO records (run, {', '.join(COLUMNS)}) VALUES ({marks})"
        rows = [(run, *astuple(record)) for record in records]
        with self._named():
            self._database.executemany(statement, rows)

    def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._named():
            return self._database.execute(statement, parameters).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # A full disk has rolled it back already, and a broken one cannot; what is stored is safe either way.
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn SQLite's errors, which never name the file, into sentences that do."""
        try:
            yield
        except sqlite3.Error as error:
            # An extended code has the plain one in its last byte.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            advice = f"; {_ADVICE[code]}" if code in _ADVICE else ""
            raise StoreError(f"{self.path}: {error}{advice}") from error
