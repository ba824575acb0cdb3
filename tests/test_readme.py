"""The README's snippets and the examples run, at a few iterations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "quickstart.py": ["--images", "1", "--budgets", "1", "2"],
    "wrap_classifier.py": ["--images", "1", "--iters", "4"],
    "art_pipeline.py": ["--images", "1", "--iters", "2"],
}


def test_the_snippets_run() -> None:
    """In order, in one namespace, as a reader would paste them; only the iterations are cut down."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) == 2
    text = "\n".join(snippets)
    text = text.replace("iters=1000", "iters=3").replace("budgets=(500, 750, 1000)", "budgets=(1, 2, 3)")
    names: dict[str, object] = {}
    exec(text, names)
    assert names["logits"].shape == (2, 1000)
    assert names["run"].images.shape == (3, 2, 3, 224, 224)


def test_the_commands_name_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b((?:examples|benchmarks)/[\w./-]+\w)", text))
    assert {"examples/quickstart.py", "examples/quickstart.png", "benchmarks/table2.py"} <= named
    assert all((ROOT / name).exists() for name in named)


def test_every_example_is_listed_and_short() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert {path.name for path in files} == set(EXAMPLES)
    for path in files:
        assert len(path.read_text().splitlines()) < 60, path.name


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / name), *EXAMPLES[name]]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "REDUCED SETTING" in done.stdout
    assert "not robustness" in done.stdout
    if name == "quickstart.py":
        assert (tmp_path / "quickstart.png").stat().st_size > 10_000
