"""A run that is killed and started again, however often, ends with the report of one that was never disturbed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from test_runner import CONFIGURATION, timeless, tiny_run

from dipdefense.evaluation import Record, Store
from dipdefense.paper.report import write_report

IMAGES, CONDITIONS = 12, ("clean", "fgsm-10", "bi-10", "noise-10")


class TalkingStore(Store):
    """Says when it has stored something, so that a test knows how far the work is."""

    def add(self, run: str, records: Iterable[Record]) -> None:
        super().add(run, records)
        print("stored", flush=True)


def work(path: Path) -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    with TalkingStore(path) as store:
        tiny_run(store, images=IMAGES, conditions=CONDITIONS, seeds=(0, 1))


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True)


def kill_after(path: Path, writes: int, delay: float) -> int:
    """Let the work go on for some writes and some seconds, and kill it; the number of writes it has told of."""
    with start(path) as process:
        assert process.stdout is not None
        for _ in range(1 + writes):
            assert process.stdout.readline(), "the work ended before it was to be killed"
        time.sleep(delay)
        process.kill()
        told = writes + process.stdout.read().count("stored")
    assert process.returncode == -signal.SIGKILL
    return told


def report(path: Path, folder: Path) -> dict[str, bytes]:
    """Every byte of the report, picture and records included, with timings and circumstances left out."""
    with Store(path) as store:
        run = timeless(store.load(store.open_run(CONFIGURATION)))
    return {written.name: written.read_bytes() for written in write_report(run, table=2, folder=folder)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(folder / "outcomes.sqlite") as process:
        assert process.wait() == 0
    return report(folder / "outcomes.sqlite", folder)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_with_the_same_report(kills: int, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "outcomes.sqlite"
    draw = random.Random(kills)
    told, stored = 0, [0]
    for _ in range(kills):
        told += kill_after(path, writes=draw.randrange(7), delay=draw.random() * 0.03)
        with Store(path) as store:
            stored.append(len(store.done(store.open_run(CONFIGURATION))))
            assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        # Whatever was told of is there, two images a write; and at most one write more, killed before it could tell.
        assert 2 * told <= stored[-1] <= 2 * (told + len(stored) - 1)
    assert stored == sorted(stored)
    assert stored[-1] > 0
    with start(path) as process:
        assert process.stdout is not None
        rest = process.stdout.read().count("stored")
        assert process.wait() == 0
    assert 0 < 2 * rest == IMAGES * len(CONDITIONS) * (1 + 2 * 4) - stored[-1]
    assert report(path, tmp_path) == undisturbed


if __name__ == "__main__":
    work(Path(sys.argv[1]))
