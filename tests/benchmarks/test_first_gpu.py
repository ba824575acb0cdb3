"""The first GPU's command: how parts end, what is skipped, a rehearsal on a CPU."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import device
import first_gpu
from first_gpu import PARTS, Attempt, Part, Plan

from dipdefense.engine.backends import Trial


@pytest.fixture(autouse=True)
def _clean_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_gpu, "circumstances", lambda device: {"commit": "abc"})


def script(code: str, share: float = 0.1) -> Part:
    """A part that runs this code."""
    return Part(share, lambda plan, attempt: (attempt.run("-c", code), None))


def rehearse(folder: Path, parts: dict[str, Part], monkeypatch: pytest.MonkeyPatch, minutes: str = "60") -> dict:
    monkeypatch.setattr(first_gpu, "PARTS", parts)
    statuses = first_gpu.main(["--rehearse", "--out", str(folder), "--minutes", minutes])
    records = {name: json.loads((folder / f"{name}.json").read_text()) for name in parts}
    assert {name: record["status"] for name, record in records.items()} == statuses
    assert all(record["part"] == name and record["commit"] == "abc" for name, record in records.items())
    return records


def test_the_shares_are_all_of_the_time() -> None:
    assert sum(part.share for part in PARTS.values()) == pytest.approx(1)


def test_a_part_that_fails_stops_no_other(tmp_path: Path, monkeypatch) -> None:
    def broken(plan: Plan, attempt: Attempt) -> tuple:
        raise KeyError("no such column")

    crash = "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    parts = {"crashed": script(crash), "unread": Part(0.1, broken), "sound": script("print('fine')")}
    records = rehearse(tmp_path, parts, monkeypatch)
    assert [record["status"] for record in records.values()] == ["failed", "failed", "passed"]
    assert records["crashed"]["output"][1] == "so far"
    assert records["unread"]["result"] == {"error": "KeyError: 'no such column'"}
    assert records["sound"]["output"] == ["$ python -c 'print('\"'\"'fine'\"'\"')'", "fine"]


def test_what_passed_at_this_commit_is_skipped(tmp_path: Path, monkeypatch, capsys) -> None:
    runs = tmp_path / "runs"
    counted = script(f"open({str(runs)!r}, 'a').write('x')")
    parts = {"sound": counted, "failing": script(f"open({str(runs)!r}, 'a').write('y'); raise SystemExit(2)")}
    for _ in range(2):
        rehearse(tmp_path, parts, monkeypatch)
    assert runs.read_text() == "xyy"
    assert "sound: passed before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stored", "commit"),
    [
        ({"status": "failed", "commit": "abc"}, "abc"),
        ({"status": "took too long", "commit": "abc"}, "abc"),
        ({"status": "passed", "commit": "abd"}, "abc"),
        ({"status": "passed", "commit": "abc-dirty"}, "abc-dirty"),
        ({"status": "passed", "commit": "abc", "rehearsal": True}, "abc"),
        ("no JSON", "abc"),
    ],
    ids=str,
)
def test_what_is_not_skipped(stored, commit: str, tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    sound = {"status": "passed", "commit": "abc", "rehearsal": False}
    path.write_text(json.dumps(sound))
    assert first_gpu.passed_before(path, {"commit": "abc", "rehearsal": False})
    path.write_text(stored if isinstance(stored, str) else json.dumps(sound | stored))
    assert not first_gpu.passed_before(path, {"commit": commit, "rehearsal": False})
    assert not first_gpu.passed_before(tmp_path / "missing.json", {"commit": "abc", "rehearsal": False})


def alive(process: int) -> bool:
    """Whether a process works; a zombie does not, even where nobody has collected it."""
    try:
        return Path("/proc", str(process), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_one_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(first_gpu, "GRACE", 0.5)
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    attempt = Attempt(tmp_path / "log", time.monotonic() + 5)
    assert attempt.run("-c", stubborn) == "took too long"
    child = int(attempt.printed().splitlines()[-1])
    # A signal takes a while to arrive on a busy machine.
    patience = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_an_interrupted_part_may_still_write(tmp_path: Path) -> None:
    code = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('counts')"
    attempt = Attempt(tmp_path / "log", time.monotonic() + 5)
    assert attempt.run("-c", code) == "took too long"
    assert attempt.printed().endswith("counts\n")


def test_unused_time_is_the_later_parts(tmp_path: Path, monkeypatch) -> None:
    parts = {name: script("", share) for name, share in {"first": 0.25, "second": 0.25, "third": 0.5}.items()}
    limits = [record["limit"] for record in rehearse(tmp_path, parts, monkeypatch, minutes="100").values()]
    # The first two end at once.
    assert limits == pytest.approx([1500, 3000, 6000], abs=100)


class Calls(Attempt):
    """Commands that end as foreseen, unrun."""

    def __init__(self, folder: Path, *statuses: str) -> None:
        super().__init__(folder / "log", 0.0)
        self.statuses = list(statuses)

    def run(self, *words) -> str:
        self.commands.append(" ".join(map(str, words)))
        return self.statuses.pop(0)


def test_table_2_grows_until_the_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "table2").mkdir()
    (tmp_path / "table2" / "table2.csv").write_text("condition,n\nclean,10\n")
    calls = Calls(tmp_path, "passed", "passed", "took too long")
    status, result = first_gpu.table2(Plan(tmp_path, "cuda", data=Path("val")), calls)
    assert status == "passed"
    assert result == {
        "images": 10,
        "last call": "15 images: took too long",
        "accuracies": [{"condition": "clean", "n": "10"}],
    }
    assert [command.split()[2] for command in calls.commands] == ["5", "10", "15"]
    assert all("--batch 5" in command and "--data" in command for command in calls.commands)
    assert first_gpu.table2(Plan(tmp_path, "cuda"), Calls(tmp_path, "failed")) == ("failed", None)


def test_tests_that_fail_are_named(tmp_path: Path) -> None:
    written = (
        '<testsuites><testsuite><testcase classname="a" name="fine"/><testcase classname="a" name="skipped">'
        '<skipped message="no"/></testcase><testcase classname="a" name="wrong"><failure message="assert 1 == 2"/>'
        "</testcase></testsuite></testsuites>"
    )

    class Written(Calls):
        def run(self, *words) -> str:
            words[-1].write_text(written)
            return super().run(*words)

    calls = Written(tmp_path, "failed")
    status, result = first_gpu.tests(Plan(tmp_path, "cuda"), calls)
    assert status == "failed"
    assert result.pop("others") == {
        "a.skipped": {"outcome": "skipped", "message": "no"},
        "a.wrong": {"outcome": "failure", "message": "assert 1 == 2"},
    }
    assert result == {"tests": 3, "passed": 1, "failure": 1, "error": 0, "skipped": 1}
    assert "-m gpu" in calls.commands[0]
    # Killed before it wrote: an older report is not taken for its own.
    assert first_gpu.tests(Plan(tmp_path, "cuda"), Calls(tmp_path, "took too long")) == ("took too long", None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "torch sees no CUDA device; --rehearse"),
        (["--rehearse", "--minutes", "0"], "--minutes must be a positive number, got 0"),
        (["--rehearse", "--data", "/no/such/folder"], "--data /no/such/folder does not exist"),
    ],
    ids=["no GPU", "minutes", "data"],
)
def test_a_command_that_cannot_be_run(wrong: list[str], message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        first_gpu.parse_arguments(wrong)
    assert message in capsys.readouterr().err


TINY = ["--device", "cpu", "--channels", "4"]


def test_a_backend_that_is_right(capsys) -> None:
    answer = device.main(["torch", *TINY])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == answer
    (errors,) = answer["float64"].values()
    assert max(errors.values()) < 1e-2
    (trial,) = answer["trials"].values()
    assert trial["seconds"]["torch"] > 0
    assert answer["failed"] == {}


def test_a_backend_that_is_wrong(monkeypatch, capsys) -> None:
    def off(*_, **__) -> None:
        raise ValueError("its gradients are off")

    monkeypatch.setattr(device, "check_backend", lambda *_: None)
    monkeypatch.setattr(device, "check", off)
    monkeypatch.setattr(
        device, "tried", lambda request, names: Trial("torch", {"torch": 1.0}, {names[0]: "same noise"})
    )
    with pytest.raises(SystemExit, match="1"):
        device.main(["triton", *TINY])
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    (found,) = first["failed"].values()
    assert found == "ValueError: its gradients are off"
    assert list(last["failed"].values()) == [found, "same noise"]


def test_the_choice_is_tried_and_taken(monkeypatch, capsys) -> None:
    (trial,) = device.main(["auto", *TINY])["trials"].values()
    assert (trial["backend"], trial["taken"], trial["status"]) == ("torch", "torch", ["ok"])


def test_a_speed_without_every_trial_has_not_passed(tmp_path: Path, monkeypatch) -> None:
    """So that the same command measures it again."""
    failed = first_gpu.TOO_LONG

    def run(attempt: Attempt, *words: object) -> str:
        checks = {"one": {"output": 0.1}, "other": {"failed": failed}}
        record = {"settings": [{"name": "s", "checks": checks}]}
        (tmp_path / f"speed-{len(list(tmp_path.iterdir()))}.json").write_text(json.dumps(record))
        return "passed"

    monkeypatch.setattr(Attempt, "run", run)
    attempt = Attempt(tmp_path / "log", time.monotonic() + 60)
    assert first_gpu.speed(Plan(tmp_path, "cuda"), attempt)[0] == "took too long"
    failed = "ValueError: no good"
    assert first_gpu.speed(Plan(tmp_path, "cuda"), attempt)[0] == "passed"


def test_the_gpus_tests_are_found_in_their_files() -> None:
    found = {path.name for path in (ROOT / "tests").rglob("test_*.py") if first_gpu._for_gpus(path)}
    assert {"test_graphs.py", "test_kernels.py", "test_kernels_network.py", "test_speed.py"} <= found
    assert "test_statistics.py" not in found


def test_a_rehearsal_of_the_quick_parts(tmp_path: Path, monkeypatch) -> None:
    names = ("tests", "backend-torch", "backend-cudagraphs")
    records = rehearse(tmp_path, {name: PARTS[name] for name in names}, monkeypatch)
    assert [record["status"] for record in records.values()] == ["passed", "passed", "unavailable"]
    assert records["tests"]["result"]["passed"] == records["tests"]["result"]["tests"] > 5
    assert records["backend-torch"]["result"].keys() == {"float64", "failed", "trials"}
    assert "needs the images on an NVIDIA GPU" in records["backend-cudagraphs"]["result"]["unavailable"]
    assert str(ROOT) + os.sep not in json.dumps(records)


@pytest.mark.slow
def test_a_whole_rehearsal(tmp_path: Path, monkeypatch) -> None:
    records = rehearse(tmp_path, PARTS, monkeypatch)
    statuses = {name: record["status"] for name, record in records.items()}
    assert statuses == dict.fromkeys(PARTS, "passed") | dict.fromkeys(
        ("backend-cudagraphs", "backend-triton"), "unavailable"
    )
    assert "hardware" in records["environment"]["result"]
    assert (tmp_path / records["speed"]["result"]["record"]).exists()
    assert records["table2"]["result"]["images"] == 2
