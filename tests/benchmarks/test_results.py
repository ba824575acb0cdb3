"""The README's tables are those of the committed records."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402

from dipdefense.evaluation import read_export  # noqa: E402
from dipdefense.evaluation.adaptive.script import read_report  # noqa: E402
from dipdefense.paper import figure1_report  # noqa: E402
from dipdefense.paper.report import as_markdown  # noqa: E402


def test_the_readmes_tables_are_the_records() -> None:
    for path, text in readme.pages():
        assert path.read_text() == text, "run python benchmarks/readme.py"
    assert "Defence-unaware" in (ROOT / "README.md").read_text()


def test_the_readmes_speeds_are_the_records() -> None:
    text = (ROOT / "README.md").read_text()
    (name,) = re.findall(r"results/(speed-[\w-]+\.json)", text)
    results = json.loads((readme.RESULTS / name).read_text())["results"]
    found = {(r["setting"], r["contender"], r["batch"]): r for r in results}
    for setting, batch, row in (
        ("224×224, paper", 1, "224×224, the paper's network, one image"),
        ("32×32, architecture 1", 4, "32×32, architecture 1, 4 images at once"),
        ("32×32, architecture 2", 16, "32×32, architecture 2, 16 images at once"),
    ):
        columns = [found[setting, "published loop", 1]] + [
            found[setting, f"dipdefense, {name}", batch] for name in ("fp32", "native, fp32", "native, bf16")
        ]
        seconds = " | ".join(f"{r['seconds']['median']:.3g}" for r in columns)
        fastest = min(columns, key=lambda r: r["seconds"]["median"])
        ratios = (fastest["speedup"][name] for name in ("median", "low", "high"))
        median, low, high = (f"{ratio:.{0 if ratio > 10 else 1}f}" for ratio in ratios)
        assert f"| {row} | {seconds} | {median} [{low}, {high}] |" in text


@pytest.mark.parametrize("source", readme.CURVES)
def test_reports_of_figure_1_are_those_of_their_records(source: str) -> None:
    folder = readme.RESULTS / source
    assert figure1_report.as_markdown(read_export(folder / "figure1.jsonl")) == (folder / "figure1.md").read_text()


@pytest.mark.parametrize("source", sorted(path.parent.name for path in readme.RESULTS.glob("*/table2.jsonl")))
def test_reports_are_those_of_their_records(source: str) -> None:
    folder = readme.RESULTS / source
    assert as_markdown(read_export(folder / "table2.jsonl"), table=2) == (folder / "table2.md").read_text()


@pytest.mark.parametrize("source", sorted(path.parent.name for path in readme.RESULTS.glob("*/adaptive.jsonl")))
def test_adaptive_reports_are_those_of_their_records(source: str) -> None:
    folder = readme.RESULTS / source
    assert read_report(folder).markdown() == (folder / "adaptive.md").read_text()
    assert source in readme.ADAPTIVE, "or the README does not show it"
