"""Usage errors in one line before any work; interrupts that say how to resume."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch

from dipdefense.evaluation import STORE, Run, Setting, circumstances
from dipdefense.evaluation.command_line import (
    add_reconstruction,
    add_subject,
    finish,
    parse,
    parser,
    script,
    subject_of,
    usage,
)
from dipdefense.evaluation.exports import ExportError
from dipdefense.evaluation.report import write_files
from dipdefense.evaluation.store import StoreError


def parsed(*arguments: str) -> argparse.Namespace:
    defaults = {"images": 2, "batch": 1, "budgets": [1], "config": "compact"}
    return parse(
        parser("A test.", add_subject, add_reconstruction), lambda _: defaults, ["--device", "cpu", *arguments]
    )


REFUSED = {
    "--seed 10000000000000000000000000": "argument --seed: must be an integer from 0 to 9223372036854775807",
    "--seed 0 -1": "--seed",
    "--images 0": "argument --images: must be an integer from 1 to 2147483647, got '0'",
    "--images -1": "argument --images: ",
    "--images many": "argument --images: must be an integer from 1 to 2147483647, got 'many'",
    "--classes 0": "argument --classes: must be an integer from 1",
    "--batch 0": "argument --batch: must be an integer from 1",
    "--batch -1": "argument --batch: ",
    "--budgets 0": "argument --budgets: must be an integer from 1",
    "--budgets 9 5": "budgets must ascend",
    "--device foo": "argument --device: must be cpu, cuda or cuda:N, got 'foo'",
    "--device mps": "argument --device: must be cpu, cuda or cuda:N, got 'mps'",
    "--device cuda:99": "argument --device: this machine has",
    "--backend cudagraphs": 'backend="cudagraphs" needs',
    "--data FOLDER/none": "argument --data: there is no file or folder",
    "--data=": "argument --data: there is no file or folder ''",
    "--weights FOLDER/none.pt": "argument --weights: there is no file or folder",
    "--weights FOLDER": "is not a file",
    "--out FOLDER/file": "argument --out: the folder 'FOLDER/file' cannot be written: Not a directory",
    "--out FOLDER/file/below": "argument --out: the folder 'FOLDER/file/below' cannot be written: Not a directory",
    "--out /proc/out": "argument --out: the folder '/proc/out' cannot be written",
}


@pytest.mark.parametrize(("line", "message"), REFUSED.items(), ids=REFUSED)
def test_arguments_that_cannot_be_used_are_one_line_and_exit_2(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_:
        parsed(*line.replace("FOLDER", str(tmp_path)).split())
    assert exit_.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message.replace("FOLDER", str(tmp_path)) in told


@pytest.mark.parametrize(("argument", "message"), [("--data", "cannot be read"), ("--out", "cannot be written")])
def test_a_path_behind_a_locked_folder_is_named(
    argument: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def locked(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", locked)
    with pytest.raises(SystemExit) as exit_:
        parsed(argument, "locked/folder")
    monkeypatch.undo()
    assert exit_.value.code == 2
    assert f"'locked/folder' {message}: Permission denied" in capsys.readouterr().err


def test_good_arguments_make_a_setting_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    given = parsed("--data", str(tmp_path / "val"), "--out", str(tmp_path / "a" / "b"), "--seed", "3", "1", "3")
    setting = Setting(**subject_of(given))
    assert (setting.seeds, setting.images, setting.data) == ((3, 1), 2, tmp_path / "val")
    assert [path.name for path in tmp_path.iterdir()] == ["val"]


@pytest.mark.parametrize(
    "change",
    [{"images": 0}, {"classes": -1}, {"batch": 0}, {"batch": None}, {"seeds": ()}, {"seeds": (10**25,)}],
    ids=str,
)
def test_a_setting_refuses_the_same_numbers(change: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(change))} must|seeds? must"):
        Setting(**change)


ENDS = {
    "Ctrl-C": (lambda: os.kill(os.getpid(), signal.SIGINT), 130, "Interrupted. "),
    "SIGTERM": (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "Terminated. "),
}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("end", "code", "word"), ENDS.values(), ids=ENDS)
def test_a_signal_ends_a_script_in_a_sentence_that_says_how_it_resumes(
    end, code: int, word: str, stored: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / STORE
    if stored:
        store.touch()
    before = signal.getsignal(signal.SIGTERM)
    # Behind nohup interrupts are ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        end()
        for _ in range(1000):
            torch.rand(100, 100) @ torch.rand(100, 100)
        pytest.fail("it went on")

    with pytest.raises(SystemExit) as exit_, script(store):
        work()
    signal.signal(signal.SIGINT, inherited)
    assert exit_.value.code == code
    (told,) = capsys.readouterr().err.splitlines()
    so_far = f"The outcomes so far are in {store}; the same command resumes from there." if stored else ""
    assert f"{word}{so_far or 'Nothing was stored yet.'}" in told
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_script_without_a_store_says_that_it_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, script(None):
        raise KeyboardInterrupt
    assert exit_.value.code == 130
    assert "Interrupted. The same command begins anew." in capsys.readouterr().err
    with pytest.raises(SystemExit), script(None):
        raise OSError(28, "No space left", "figure2.png")
    assert "figure2.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [StoreError("a.sqlite: full"), ExportError("a.jsonl, line 3: no"), OSError(28, "No space left", "table2.md")],
    ids=lambda error: type(error).__name__,
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_, script(tmp_path / STORE):
        raise error
    assert exit_.value.code == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert f"error: {error}" in told
    assert "The outcomes so far are in" not in told


def test_a_refused_choice_is_one_line_and_a_bug_keeps_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_, script(tmp_path / STORE), usage():
        raise ValueError("only 3 right")
    assert exit_.value.code == 2
    assert "error: only 3 right" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a bug"), script(tmp_path / STORE):
        raise ValueError("a bug")


def test_it_ends_with_the_report_its_files_and_the_number_of_skipped_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run({}, (), {}, skipped) for skipped in ((), ("a.png", "b.png"), ("b.png",))]
    files = write_files(tmp_path / "new", {"report.txt": "90 %", "plot.png": b"PNG"}, {"records.jsonl": runs[1]})
    assert [file.read_bytes() for file in files[:2]] == [b"90 %", b"PNG"]
    assert '["a.png", "b.png"]' in files[2].read_text()
    finish(files, tmp_path / STORE, runs)
    out, err = capsys.readouterr()
    assert out == f"90 %\nwritten: {' '.join(map(str, files))} and {tmp_path / STORE}\n"
    assert err == "2 images could not be read and were skipped\n"
    finish(files, tmp_path / STORE, runs[:1])
    assert not capsys.readouterr().err


def test_a_warning_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with script(tmp_path / STORE):
        warnings.warn("a.png is skipped", stacklevel=1)
    assert capsys.readouterr().err == "warning: a.png is skipped\n"


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        (["--data", "/a/secret/x"], "--data x"),
        (["--data=/a/secret/x"], "--data=x"),
        (["--data=/a=b/secret/x/"], "--data=x"),
        (["-o/a/secret/x"], "-ox"),
        (["--data", ".", "--images=3", "--seed", "0", "1"], "--data . --images=3 --seed 0 1"),
    ],
)
def test_the_recorded_command_has_no_folders(words: list[str], recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script_ = Path(__file__).parents[2] / "benchmarks" / "table2.py"
    monkeypatch.setattr(sys, "argv", [str(script_), *words])
    assert circumstances(torch.device("cpu"))["command"] == f"python benchmarks/table2.py {recorded}"
    package = Path(__file__).parents[2] / "benchmarks" / "speed" / "__main__.py"
    monkeypatch.setattr(sys, "argv", [str(package)])
    assert circumstances(torch.device("cpu"))["command"] == "python benchmarks/speed"
    monkeypatch.setattr(sys, "argv", ["/home/me/own.py"])
    assert circumstances(torch.device("cpu"))["command"] == "python own.py"
