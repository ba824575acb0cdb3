"""The timing of commits: a checkout for each, in turns, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from speed import history

if not (ROOT / ".git").exists():
    pytest.skip("needs the repository", allow_module_level=True)


def temporary_worktrees(parent: Path) -> list[str]:
    """Worktrees below ``parent``; other processes may add and move others meanwhile."""
    command = ["git", "-C", str(ROOT), "worktree", "list", "--porcelain"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(parent) in line]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkouts are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_backend_reaches_the_commits(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def noted(_: Path, command: list[str]) -> float:
        commands.append(command)
        return 1.0

    monkeypatch.setattr(history, "milliseconds", noted)
    arguments = ["HEAD", "--rounds", "1", "--settings", "4", "--iterations", "5", "--out", str(temporary)]
    path = history.main([*arguments, "--backend", "torch"])
    assert json.loads(path.read_text())["backend"] == "torch"
    history.main(arguments)
    assert [command[5:] for command in commands] == [["torch"], []]


def test_a_run_takes_the_backend_that_it_is_given() -> None:
    command = ["architecture_2", "32", "1", "5", "0"]
    assert history.milliseconds(ROOT, [*command, "torch"]) > 0
    with pytest.raises(subprocess.CalledProcessError) as failed:
        history.milliseconds(ROOT, [*command, "cudagraphs"])
    assert "cudagraphs" in failed.value.stderr


def test_commits_take_turns_and_leave_nothing_behind(
    temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    timed = history.milliseconds

    def watched(folder: Path, command: list[str]) -> float:
        assert (folder / "dipdefense" / "reconstruct.py").exists()
        assert len(temporary_worktrees(temporary)) == 1
        turns.append(folder.name)
        return timed(folder, command) if len(turns) == 1 else float(len(turns))

    monkeypatch.setattr(history, "milliseconds", watched)
    path = history.main(
        [
            "HEAD",
            "HEAD",
            "HEAD",
            "--rounds",
            "3",
            "--settings",
            "4",
            "--iterations",
            "5",
            "--out",
            str(temporary / "out"),
        ]
    )
    record = json.loads(path.read_text())
    ((commit, subject),) = record["commits"].items()
    assert turns == [commit] * 3
    (setting,) = record["settings"]
    first, *others = setting["milliseconds"][commit]
    assert first > 0
    assert others == [2, 3]
    printed = capsys.readouterr().out
    assert f"| {commit}: {subject} | {sorted([first, 2, 3])[1]:.3g} [" in printed
    assert not temporary_worktrees(temporary)
    assert [path.name for path in temporary.iterdir()] == ["out"]


def test_the_package_timed_is_the_checkouts(tmp_path: Path) -> None:
    package = tmp_path / "dipdefense"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('another package')")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        history.milliseconds(tmp_path, ["architecture_2", "32", "1", "5", "0"])
    assert "another package" in raised.value.stderr


def test_no_commit(temporary: Path) -> None:
    with pytest.raises(ValueError, match="no-such-name"):
        history.main(["HEAD", "no-such-name"])
    assert not temporary_worktrees(temporary)
    assert not list(temporary.iterdir())
