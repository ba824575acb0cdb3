"""The examples run from beginning to end, are short, and say what their numbers are worth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = {
    "quickstart.py": (
        ["--images", "1", "--budgets", "1", "2"],
        ["original .* right", "FGSM, ε = 5/255", "2 iterations"],
    ),
    "wrap_classifier.py": (
        ["--images", "1", "--iters", "4"],
        [r"logits \(1, 1000\), gradient \(1, 3, 224, 224\)", "undefended", "2 iterations", "4 iterations"],
    ),
    "art_pipeline.py": (
        ["--images", "1", "--iters", "4"],
        ["clean .* defended +[01] of 1", "FGSM, .* undefended +[01] of 1", "BPDA gradient"],
    ),
}


def test_every_example_is_run_here_and_is_short() -> None:
    files = sorted(FOLDER.glob("*.py"))
    assert {path.name for path in files} == set(EXAMPLES)
    for path in files:
        assert len(path.read_text().splitlines()) < 60, path.name


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_and_says_what_it_is_worth(name: str, tmp_path: Path) -> None:
    arguments, told = EXAMPLES[name]
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in [*told, "REDUCED SETTING", "defence-unaware", "not robustness"]:
        assert re.search(text, done.stdout), f"{text!r} is not in:\n{done.stdout}"
    if name == "quickstart.py":
        assert (tmp_path / "quickstart.png").stat().st_size > 10_000
