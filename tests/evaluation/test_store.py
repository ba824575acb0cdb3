"""What is stored stays stored, configurations never mix, and a kill inside a write leaves the file as it was."""

from __future__ import annotations

import dataclasses
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dipdefense.evaluation.store import Record, Store, export, identity, read_export

CONFIGURATION = {"classifier": "tiny", "weights": "0123", "seed": 0, "method": {"channels": 4}}


def record(image: str = "a", **changes: object) -> Record:
    values = {
        "condition": "clean",
        "defence": "dip",
        "budget": 2,
        "seed": 0,
        "position": 0,
        "label": 3,
        "prediction": 3,
        "confidence": 0.1 + 0.2,
        "loss": 1e-3,
        "status": "ok",
        "seconds": 0.25,
    }
    return Record(image=image, **(values | changes))


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


def test_an_export_is_gone_on_with_in_a_store_of_its_own(path: Path) -> None:
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


def test_what_is_there_already_stays_as_it_is(path: Path) -> None:
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
        with pytest.raises(sqlite3.IntegrityError):
            store.add(run, [record("b", session=session), bad])
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
    with pytest.raises(ValueError, match="has layout 99"):
        Store(path)


KILLED_INSIDE_A_WRITE = """
import os, signal, sys
from test_store import CONFIGURATION, record
from dipdefense.evaluation.store import Store

class Killer:
    def __init__(self, database):
        self.execute = database.execute
        self.write = database.executemany

    def executemany(self, statement, rows):
        self.write(statement, rows)
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(sys.argv[1])
run = store.open_run(CONFIGURATION)
session = store.open_session(run, {})
store.add(run, [record("a", session=session)])
store._database = Killer(store._database)
store.add(run, [record(image, session=session) for image in ("b", "c", "d")])
"""


def test_a_kill_inside_a_write_leaves_the_file_as_it_was(path: Path) -> None:
    command = [sys.executable, "-c", KILLED_INSIDE_A_WRITE, str(path)]
    killed = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with Store(path) as store:
        run = store.open_run(CONFIGURATION)
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


def test_an_export_is_read_back_as_it_was(path: Path, tmp_path: Path) -> None:
    run = fill(path, record("a"), record("ü", position=1, confidence=None, loss=None))
    with Store(path) as store:
        stored = store.load(run)
    export(stored, tmp_path / "records.jsonl")
    assert read_export(tmp_path / "records.jsonl") == stored
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"configuration": {}}', '{"configuration": {}, "sessions": {}}\n{"a": 1}'])
def test_what_is_no_export_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no exported run"):
        read_export(path)
