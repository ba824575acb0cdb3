"""Thirty kills of a purification of 200 files lose and half-write none of them."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import picture_tree
import pytest

from dipdefense.files import read_image

KILLS = 30


def command(source: Path, out: Path) -> list[str]:
    options = ["--iters", "20", "--config", "architecture-2", "--batch-size", "4"]
    return [sys.executable, "-m", "dipdefense", "purify", str(source), str(out), "--device", "cpu", *options]


def pixels(folder: Path) -> dict[str, np.ndarray]:
    """Every picture below a folder, wholly decoded: one that was cut off raises."""
    return {path.relative_to(folder).as_posix(): decoded(path) for path in pictures(folder)}


def pictures(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() == ".png"]


def decoded(path: Path) -> np.ndarray:
    return read_image(path).pixels.numpy()  # all 16 bits, where there are so many


def locked_by(process: subprocess.Popen, folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return (folder / ".dipdefense.lock").read_text() == str(process.pid)
    return False


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_thirty_times_it_ends_as_if_it_never_was(tmp_path: Path) -> None:
    source, whole, killed = tmp_path / "in", tmp_path / "whole", tmp_path / "killed"
    names = picture_tree.make(source, 200)
    assert subprocess.run(command(source, whole), capture_output=True, check=False).returncode == 1
    assert set(pixels(whole)) == names

    chance, counts, whole_files = random.Random(0), [0], set()
    while len(counts) <= KILLS:
        process = subprocess.Popen(
            command(source, killed), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # Behind nohup interrupts are ignored, and a child would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        # Every fifth is killed while it begins, the others while they work.
        if len(counts) % 5 == 0:
            time.sleep(chance.uniform(0.2, 4))
        else:
            further = chance.randint(0, 8)
            while process.poll() is None and not locked_by(process, killed):
                time.sleep(0.02)
            while process.poll() is None and len(found := pictures(killed)) < counts[-1] + further:
                for path in set(found) - whole_files:  # at any moment every picture is whole
                    decoded(path)
                    whole_files.add(path)
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.05))
        process.send_signal(kind)
        errors = process.communicate()[1]
        assert "Traceback" not in errors, errors
        assert process.returncode in (1, -kind, 128 + kind)
        counts.append(len(pixels(killed)))
    print("files after each kill:", counts)
    assert len(set(counts)) > 15
    assert subprocess.run(command(source, killed), capture_output=True, check=False).returncode == 1
    expected, found = pixels(whole), pixels(killed)
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []
    assert list(killed.rglob(".*")) == []
