"""Signals end a command in one sentence, whatever it is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dipdefense import DIPPurifier
from dipdefense.__main__ import main
from dipdefense.cli import ending
from dipdefense.cli.command import command
from dipdefense.files import write_image

WORDS = ["--config", "architecture-2", "--device", "cpu", "--iters", "2"]


@pytest.fixture(autouse=True)
def _no_signal_yet(monkeypatch) -> None:
    monkeypatch.setattr(ending, "_received", [])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", torch.rand(3, 32, 32))
    return tmp_path / "in"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("swallowed", [False, True])
def test_an_interrupt_during_the_fit_keeps_what_is_done(
    images: Path, tmp_path: Path, monkeypatch, number: int, code: int, swallowed: bool
) -> None:
    inner = DIPPurifier.reconstruct

    def interrupted(self, images, *, on_iteration, **given):
        def iterated(count: int) -> None:
            if (tmp_path / "out" / "1.png").exists():
                try:
                    ending._on_signal(number, None)
                except ending.Interrupted:  # as in a callback, whose exceptions are lost
                    if not swallowed:
                        raise
            on_iteration(count)

        return inner(self, images, on_iteration=iterated, **given)

    words = ["purify", str(images), str(tmp_path / "out"), *WORDS, "--batch-size", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(DIPPurifier, "reconstruct", interrupted)
        result = CliRunner().invoke(command, words)
    assert result.exit_code == code
    assert "2 of 3 images are done" in result.stdout
    assert "The same command resumes." in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.png", "1.png"}
    monkeypatch.setattr(ending, "_received", [])
    assert CliRunner().invoke(command, words).exit_code == 0


def test_an_interrupt_while_a_file_is_written_leaves_no_part_of_it(images: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupted(_descriptor: int) -> None:
        raise ending.Interrupted(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupted)
    result = CliRunner().invoke(command, ["purify", str(images), str(tmp_path / "out"), *WORDS])
    assert result.exit_code == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_between_two_blocks_has_no_traceback(monkeypatch, capsys) -> None:
    def interrupted(**_: object) -> None:
        raise ending.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(ending, "handle_signals", lambda: None)
    monkeypatch.setattr(command, "main", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (143, "dipdefense: Terminated.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("subcommand", ["purify", "doctor"])
def test_an_interrupt_during_the_imports_has_no_traceback(
    images: Path, tmp_path: Path, number: int, subcommand
) -> None:
    words = [str(images), str(tmp_path / "out"), *WORDS] if subcommand == "purify" else ["--size", "32"]
    marker = tmp_path / "begun"
    # The import of torch has begun once its package is in the table of modules.
    code = (
        "import sys, threading, time, pathlib\n"
        f"sys.argv = ['dipdefense', {subcommand!r}, *{words!r}]\n"
        "def watch():\n"
        "    while 'torch' not in sys.modules: time.sleep(0.01)\n"
        f"    pathlib.Path({str(marker)!r}).touch()\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "from dipdefense.__main__ import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Behind nohup interrupts are ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    printed, errors = process.communicate()
    assert (process.returncode, printed) == (128 + number, "")
    word = "Interrupted" if number == signal.SIGINT else "Terminated"
    assert errors == f"dipdefense: {word}.\n"
