"""The README's tables are those of the committed records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

from dipdefense.evaluation import read_export  # noqa: E402
from dipdefense.evaluation.report import as_markdown  # noqa: E402


def test_the_readmes_tables_are_the_records() -> None:
    text = (ROOT / "README.md").read_text()
    assert readme.with_results(text) == text, "run python benchmarks/readme.py"
    assert "Defence-unaware" in text


@pytest.mark.parametrize("source", readme.SOURCES)
def test_reports_are_those_of_their_records(source: str) -> None:
    folder = readme.RESULTS / source
    assert as_markdown(read_export(folder / "table2.jsonl"), table=2) == (folder / "table2.md").read_text()
