"""A run killed and resumed anywhere, however often, ends with the same report.

The processes that are killed are forked from one that has imported everything: a kill costs no start of Python.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from measuring import CONFIG, timeless, tiny_defences, tiny_measure, tiny_subject

from dipdefense import files
from dipdefense.evaluation import STORE, Record, Store, exports, measurement, read_export
from dipdefense.paper import figure1_report, report
from dipdefense.paper.figure1_setting import CurveSetting, measure_figure
from dipdefense.paper.report import write_report

CONDITIONS = ("clean", "fgsm-10", "bi-10", "noise-10")
FIGURE_1_CONDITIONS = ("clean", "fgsm-1", "llci-5")
BUDGETS = (1, 2, 3, 4)


class TalkingStore(Store):
    """Says when it has stored something, so that a test knows how far the run is."""

    def add(self, run: str, records: Iterable[Record]) -> None:
        super().add(run, records)
        print("stored", flush=True)


def write_talking(path: Path, data: bytes | str) -> None:
    print("writing", flush=True)
    files.write_atomically(path, data)


def work(folder: Path) -> None:
    """Run what the folder is named for, from its images to its report.

    Timings and circumstances are left out of the report.
    """
    measurement.Store = TalkingStore  # type: ignore[misc]
    exports.write_atomically = write_talking
    for module in (report, figure1_report):
        # Seconds a report, and no other bytes for the same records, as test_report.py has it.
        module.png = lambda _: bytes(100_000)  # type: ignore[attr-defined]
        module.write_atomically = write_talking  # type: ignore[attr-defined]
    subject = tiny_subject(images=8)
    if "figure1" in folder.name:
        setting = CurveSetting(
            out=folder, batch=2, progress=False, config=CONFIG, budgets=BUDGETS, conditions=FIGURE_1_CONDITIONS
        )
        figure1_report.write_report(timeless(measure_figure(setting, subject)), folder=folder)
    else:
        run = tiny_measure(folder, subject, conditions=CONDITIONS, defences=tiny_defences(BUDGETS))
        write_report(timeless(run), table=2, folder=folder)


def serve() -> None:
    """Fork a process for every folder that is named on stdin, and say how it ended."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            print("pid", os.getpid(), flush=True)
            work(Path(line.strip()))
            os._exit(0)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Worker:
    """The process that forks the others."""

    def __init__(self) -> None:
        environment = os.environ | {"MPLBACKEND": "agg"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return int(self.line().removeprefix("pid "))

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self, folder: Path) -> list[str]:
        """Let it come to its end; what it told."""
        self.start(folder)
        return self.rest(0)

    def rest(self, code: int) -> list[str]:
        lines = []
        while not (line := self.line()).startswith("ended"):
            lines.append(line)
        assert line == f"ended {code}"
        return lines

    def kill(self, folder: Path, after: str, times: int, delay: float) -> int | None:
        """Kill it ``delay`` seconds after it has told ``after`` ``times`` times.

        Return how often it told it, or None if it ended before.
        """
        pid = self.start(folder)
        told = 0
        while told < times:
            line = self.line()
            told += line == after
            if line.startswith("ended"):
                assert line == "ended 0"
                return None
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        while not (line := self.line()).startswith("ended"):
            told += line == after
        return told if line == f"ended -{signal.SIGKILL.value}" else None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.process.stdin.close()  # type: ignore[union-attr]
    assert worker.process.wait() == 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte of the report, records included."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[tf]*"))}


@pytest.fixture(scope="module")
def undisturbed(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    worker.finish(folder)
    assert len(contents(folder)) == 7
    return folder


def stored(folder: Path) -> int:
    with Store(folder / STORE) as store:
        assert store._execute("PRAGMA integrity_check") == [("ok",)]
        ((count,),) = store._execute("SELECT count(*) FROM records")
    return int(count)


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_with_the_same_report(
    kills: int, worker: Worker, undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(kills)
    done = rounds = 0
    while done < kills:
        folder = tmp_path / f"round {rounds}"
        before = 0
        while done < kills:
            told = worker.kill(folder, "stored", times=chance.randrange(5), delay=chance.random() * 0.05)
            if told is None:
                break
            done += 1
            # Every write that was told of is there, two images each; and at most one more, killed before it could tell.
            now = stored(folder) if (folder / STORE).exists() else 0
            assert 2 * told <= now - before <= 2 * (told + 1)
            before = now
        rest = worker.finish(folder).count("stored")
        assert 2 * rest == 8 * len(CONDITIONS) * (1 + 2 + len(BUDGETS)) - before
        assert contents(folder) == contents(undisturbed)
        rounds += 1


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_while_the_report_is_written_leaves_every_file_whole(
    kills: int, worker: Worker, undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(kills)
    whole = contents(undisturbed)
    for number in range(kills):
        folder = tmp_path / str(number)
        shutil.copytree(undisturbed, folder)
        alone = number % 2 == 1
        if alone:
            # The exported records are the only copy until the store has taken them up.
            for path in folder.glob(f"{STORE}*"):
                path.unlink()
        worker.kill(folder, "writing", times=1 + chance.randrange(len(whole)), delay=chance.random() * 0.004)
        assert contents(folder) == whole
        assert len(read_export(folder / "table2.jsonl").records) == 8 * len(CONDITIONS) * 7
        assert worker.finish(folder).count("stored") == 0
        assert contents(folder) == whole


def test_figure_1_resumes_with_the_same_report(worker: Worker, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "figure1", tmp_path / "figure1 killed"
    worker.finish(undisturbed)
    assert set(contents(undisturbed)) == {
        f"figure1{end}" for end in (".txt", ".md", ".csv", ".jsonl", ".png", "-images.png")
    }
    for times in (2, 0, 4):
        assert worker.kill(killed, "stored", times=times, delay=0.02) is not None
    left = worker.finish(killed).count("stored")
    assert 0 < left < 4 * len(FIGURE_1_CONDITIONS) * (1 + len(BUDGETS))
    assert contents(killed) == contents(undisturbed)


if __name__ == "__main__":
    serve()
