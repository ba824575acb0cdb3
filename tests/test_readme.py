"""The README's snippets run, and the files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dipdefense.evaluation import LEVELS, Level

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_snippets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace; only iterations and attackers are cut down."""
    monkeypatch.setitem(LEVELS, "quick", Level(name="quick", attacks={"bpda": {"steps": 1}}, draws=1))
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) == 3
    text = "\n".join(snippets).replace("evaluate(DIPPurifier(iters=1000)", "evaluate(DIPPurifier(iters=1)")
    text = text.replace("iters=1000", "iters=3").replace("(500, 750, 1000)", "(1, 2, 3)")
    names: dict[str, object] = {}
    exec(text, names)
    assert names["logits"].shape == (2, 1000)
    assert names["report"].epsilons == [4, 8]
    assert names["run"].images.shape == (3, 2, 3, 224, 224)


def test_the_files_that_it_names_exist() -> None:
    named = set(re.findall(r"\b((?:examples|benchmarks)/[\w./-]*\w)", README))
    assert {"examples/quickstart.py", "examples/quickstart.png", "benchmarks/table2.py"} <= named
    assert all((ROOT / name).exists() for name in named)
