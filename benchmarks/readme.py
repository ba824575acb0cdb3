"""Write the README's tables from the records in benchmarks/results, between the two markers that it has for them.

python benchmarks/readme.py
"""

from __future__ import annotations

from pathlib import Path

from dipdefense.evaluation import read_export
from dipdefense.paper.report import headline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("table2-baselines", "table2-reconstruction", "table2-paper-network", "table2-cifar10")
BEGIN, END = "<!-- results: begin (written by benchmarks/readme.py) -->", "<!-- results: end -->"


def with_results(readme: str) -> str:
    """The README with its tables as the records have them."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    tables = [headline(read_export(RESULTS / source / "table2.jsonl")) for source in SOURCES]
    return "\n\n".join([before + BEGIN, *tables, END]) + after


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_results(path.read_text()))
