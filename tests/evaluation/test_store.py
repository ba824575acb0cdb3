"""Outcomes stay stored, configurations never mix, and killed writes do no harm."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from measuring import record

from dipdefense.evaluation import Record, Store, StoreError
from dipdefense.evaluation.records import identity

CONFIGURATION = {"classifier": "tiny", "weights": "0123", "seed": 0, "method": {"channels": 4}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "outcomes.sqlite"


def fill(path: Path, *records: Record, configuration: dict = CONFIGURATION) -> str:
    with Store(path) as store:
        run = store.open_run(configuration)
        session = store.open_session(run, {"commit": "c0ffee"})
        store.add(run, [dataclasses.replace(r, session=session) for r in records])
    return run


def test_records_come_back_exactly_and_in_order(path: Path) -> None:
    records = [
        record("b", position=1, prediction=-1, confidence=None, loss=None, status="diverged"),
        record("a", budget=4),
        record("a", budget=2),
    ]
    run = fill(path, *records)
    with Store(path) as store:
        stored = store.load(run)
        assert store.done(run) == {r.key for r in records}
    assert [dataclasses.replace(r, session=0) for r in stored.records] == [records[2], records[1], records[0]]
    assert [r.correct for r in stored.records] == [True, True, False]
    assert stored.configuration == CONFIGURATION
    assert list(stored.sessions.values()) == [{"commit": "c0ffee"}]


def test_a_store_takes_up_an_export(path: Path) -> None:
    run = fill(path, record("a"), record("b", position=1))
    with Store(path) as store:
        whole = store.load(run)
    other = path.with_name("other.sqlite")
    fill(other, record("a", prediction=5))
    with Store(other) as store:
        for _ in range(2):
            store.restore(whole)
        found = store.load(run)
        (sessions,) = store._database.execute("SELECT count(*) FROM sessions").fetchone()
    # What was there stays; what was not comes with its circumstances, once.
    assert [(r.image, r.prediction) for r in found.records] == [("a", 5), ("b", 3)]
    assert list(found.sessions.values()) == [{"commit": "c0ffee"}] * 2
    assert sessions == 2


def test_a_stored_outcome_stays_as_it_is(path: Path) -> None:
    fill(path, record(prediction=3))
    run = fill(path, record(prediction=5), record("b"))
    with Store(path) as store:
        assert [(r.image, r.prediction) for r in store.load(run).records] == [("a", 3), ("b", 3)]


@pytest.mark.parametrize(
    "change",
    [{"classifier": "other"}, {"weights": "4567"}, {"seed": 1}, {"method": {"channels": 5}}, {"more": None}],
    ids=lambda change: next(iter(change)),
)
def test_configurations_never_mix(path: Path, change: dict) -> None:
    run = fill(path, record(prediction=3))
    other = fill(path, record(prediction=5), configuration=CONFIGURATION | change)
    assert other != run
    with Store(path) as store:
        assert [r.prediction for r in store.load(run).records] == [3]
        assert [r.prediction for r in store.load(other).records] == [5]
        assert len(store.load(run).sessions) == len(store.load(other).sessions) == 1


def test_the_order_of_a_configuration_is_no_part_of_it() -> None:
    assert identity(dict(reversed(CONFIGURATION.items()))) == identity(CONFIGURATION)


def test_a_configuration_that_json_would_change_is_refused(path: Path) -> None:
    with Store(path) as store, pytest.raises(ValueError, match="JSON"):
        store.open_run({"learning_rate": float("nan")})


def test_records_that_cannot_be_stored_leave_none_of_their_batch(path: Path) -> None:
    run = fill(path, record("a"))
    with Store(path) as store:
        session = max(store.load(run).sessions)
        bad = record("c", session=session, confidence="high")
        with pytest.raises(ValueError, match="confidence must be a number in"):
            store.add(run, [record("b", session=session), bad])
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            store.add(run, [record("b", session=session), record("c", session=session + 1)])
        assert {key.image for key in store.done(run)} == {"a"}
        store.add(run, [record("b", session=session)])
        assert {key.image for key in store.done(run)} == {"a", "b"}


def test_sessions_without_records_are_not_reported(path: Path) -> None:
    run = fill(path, record())
    fill(path)
    with Store(path) as store:
        assert len(store.load(run).sessions) == 1


def test_an_unknown_run_says_which_there_are(path: Path) -> None:
    run = fill(path, record())
    with Store(path) as store, pytest.raises(ValueError, match=f"there are: {run}"):
        store.load("nothing")


def test_a_file_of_another_version_is_refused(path: Path) -> None:
    fill(path, record())
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match=r"outcomes\.sqlite has layout 99"):
        Store(path)


def occupied(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE songs (title TEXT)")


def no_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 99)


def other_tables(path: Path) -> None:
    occupied(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")


def damaged(path: Path) -> None:
    fill(path, *(record(str(number)) for number in range(200)))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


UNUSABLE = {
    "another database": (occupied, "is a database of something else; give another folder"),
    "no database": (no_database, "this is not a store of outcomes"),
    "a folder": (lambda path: path.mkdir(parents=True), "unable to open database file; make the file"),
    "below a file": (lambda path: path.parent.touch(), "its folder cannot be made .*; give another folder"),
    "other tables": (other_tables, "no such table: records; this database has other tables"),
    "damaged": (damaged, "malformed.*; move the file away"),
}


@pytest.mark.parametrize(("make", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_file_is_named_with_the_way_out(path: Path, make: Callable[[Path], object], message: str) -> None:
    make(path)
    with pytest.raises(StoreError, match=f"outcomes.sqlite.*{message}"), Store(path) as store:
        store.done("run")


def test_another_databases_tables_stay_as_they_are(path: Path) -> None:
    occupied(path)
    with pytest.raises(StoreError):
        Store(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]


@pytest.mark.parametrize(
    ("pragma", "message"),
    [("max_page_count = 1", "disk is full; free some space and call again"), ("query_only = ON", "readonly.*writable")],
    ids=["full", "read-only"],
)
def test_a_write_that_fails_names_the_file_and_loses_nothing(path: Path, pragma: str, message: str) -> None:
    run = fill(path, record("a"))
    with Store(path) as store:
        session = max(store.load(run).sessions)
        store._database.execute(f"PRAGMA {pragma}")
        with pytest.raises(StoreError, match=f"outcomes.sqlite: .*{message}"):
            store.add(run, [record(f"b{number}", session=session) for number in range(999)])
    with Store(path) as store:
        assert {key.image for key in store.done(run)} == {"a"}


def test_a_file_locked_by_another_process_is_named(path: Path) -> None:
    fill(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"outcomes.sqlite: database is locked; another process"):
            Store(path, patience=0.05)


def test_an_outcome_belongs_to_the_images_content(path: Path) -> None:
    run = fill(path, record("a", content="old"), record("b", content="b"))
    with Store(path) as store:
        assert store.adopt(run, {"a": (3, "new"), "b": (3, "b"), "c": (3, "c")}) == ["a"]
        session = max(store.load(run).sessions)
        store.add(run, [record("a", content="new", prediction=5, session=session)])
        assert {(r.image, r.content, r.prediction) for r in store.load(run).records} == {
            ("a", "old", 3),
            ("a", "new", 5),
            ("b", "b", 3),
        }


def test_outcomes_without_a_digest_are_trusted_by_the_images_name_and_label(path: Path) -> None:
    run = fill(path, record("a"), record("a", budget=4), record("b"))
    with Store(path) as store:
        assert store.adopt(run, {"a": (3, "found"), "b": (7, "found")}) == ["b"]
        assert {(key.image, key.budget, key.content) for key in store.done(run)} == {
            ("a", 2, "found"),
            ("a", 4, "found"),
            ("b", 2, ""),
        }
        # From now on another content is another image.
        assert store.adopt(run, {"a": (3, "changed")}) == ["a"]


def test_an_export_without_digests_adds_nothing_that_is_there_under_its_digest(path: Path) -> None:
    run = fill(path, record("a"))
    with Store(path) as store:
        whole = store.load(run)
        store.adopt(run, {"a": (3, "found")})
        store.restore(whole)
        assert [r.content for r in store.load(run).records] == ["found"]


KILLED_INSIDE_A_WRITE = """
import os, signal, sys
from measuring import record
from dipdefense.evaluation import Store

class Killer:
    def __init__(self, database):
        self.execute = database.execute
        self.write = database.executemany

    def executemany(self, statement, rows):
        self.write(statement, rows)
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(sys.argv[1])
run = store.open_run({"classifier": "tiny"})
session = store.open_session(run, {})
store.add(run, [record("a", session=session)])
store._database = Killer(store._database)
store.add(run, [record(image, session=session) for image in ("b", "c", "d")])
"""


def test_a_kill_inside_a_write_leaves_the_file_as_it_was(path: Path) -> None:
    command = [sys.executable, "-c", KILLED_INSIDE_A_WRITE, str(path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with Store(path) as store:
        run = store.open_run({"classifier": "tiny"})
        assert {key.image for key in store.done(run)} == {"a"}
        assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_writers_at_once_lose_nothing(path: Path) -> None:
    fill(path)

    def write(name: str) -> None:
        for index in range(40):
            fill(path, record(f"{name}{index}"))

    writers = [threading.Thread(target=write, args=(name,)) for name in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with Store(path) as store:
        assert len(store.done(store.open_run(CONFIGURATION))) == 80
