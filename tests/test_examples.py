"""The examples run to the end, are short, and say what their numbers are worth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    "own_image.py": (
        ["--iters", "2", "--max-side", "64"],
        ["Saved out/own_image.png, 64×64", "before .*bull mastiff", "after"],
    ),
    "folder.py": (["--iters", "2"], ["4 of 4 images of 32×32 pixels done", "See out/folder"]),
    "honest_evaluation.py": (["--images", "1", "--iters", "1"], ["worst case", "PASS", "Saved out/honest-evaluation"]),
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
    unaware = [] if name == "honest_evaluation.py" else ["defence-unaware"]
    for text in [*told, "REDUCED SETTING", *unaware, "not robustness"]:
        assert re.search(text, done.stdout), f"{text!r} is not in:\n{done.stdout}"
    if name == "quickstart.py":
        assert (tmp_path / "out" / "quickstart.png").stat().st_size > 10_000


def test_a_folder_of_files_with_upper_case_endings(tmp_path: Path) -> None:
    Image.new("RGB", (40, 33), "teal").save(tmp_path / "PHOTO.JPEG")
    Image.new("RGB", (40, 31), "teal").save(tmp_path / "small.png")
    command = [sys.executable, str(FOLDER / "folder.py"), str(tmp_path), "--out", str(tmp_path / "out"), "--iters", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "PHOTO.png").exists(), done.stdout
    assert "small.png is smaller than 32 pixels" in done.stdout


def test_the_quickstart_runs_in_a_notebook_cell(tmp_path: Path) -> None:
    """There the command line has the kernel's arguments and none of the script's."""
    text = (FOLDER / "quickstart.py").read_text().replace("or [250, 500, 750]", "or [1, 2]")
    code = (
        "import sys, types\n"
        "sys.modules['ipykernel'] = types.ModuleType('ipykernel')\n"
        "sys.argv = ['ipykernel_launcher.py', '-f', '/tmp/kernel-1.json']\n"
        f"exec(compile({text!r}, 'cell', 'exec'), {{'__name__': '__main__'}})"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "quickstart.png").exists()


def test_what_the_quickstart_writes_is_ignored_by_git() -> None:
    root = FOLDER.parent
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    assert subprocess.run(["git", "check-ignore", "-q", "out/quickstart.png"], cwd=root, check=False).returncode == 0
