"""Write the tables of the two READMEs from the records in benchmarks/results, between their markers.

python benchmarks/readme.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.protocol import condition_title
from dipdefense.files import write_atomically
from dipdefense.paper import figure1_report
from dipdefense.paper.labels import banner, column_title, percent, published_title, subject
from dipdefense.paper.published import CLASSIFIER, IMAGES, printed_number
from dipdefense.paper.report import headline
from dipdefense.paper.tables import table_cells

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("table2-baselines", "table2-reconstruction", "table2-paper-network", "table2-cifar10")
CURVES = tuple(sorted(path.parent.name for path in RESULTS.glob("*/figure1.jsonl")))
BEGIN, END = "<!-- results: begin (written by benchmarks/readme.py) -->", "<!-- results: end -->"

FIRST_SCREEN = "table2-reconstruction"
MEASURED = (("none", 0), ("randomisation", 1), ("dip", 500), ("dip", 1000))
PUBLISHED = (("none", 0), ("dip", 500), ("dip", 1000))


def pages() -> Iterator[tuple[Path, str]]:
    """Each README's file, and its text with the tables as the records have them."""
    runs = {source: read_export(RESULTS / source / "table2.jsonl") for source in SOURCES}
    yield _filled(ROOT / "README.md", brief(runs[FIRST_SCREEN]))
    tables = [headline(run) for run in runs.values()]
    tables += [figure1_report.headline(read_export(RESULTS / source / "figure1.jsonl")) for source in CURVES]
    yield _filled(ROOT / "benchmarks" / "README.md", "\n\n".join(tables))


def brief(run: Run) -> str:
    """A few columns of a record, beside the paper's."""
    cells = table_cells(run)
    found = {(cell.condition, cell.column): cell for cell in cells}
    titles = [column_title(*column) for column in MEASURED] + [published_title(*column) for column in PUBLISHED]
    lines = ["| | " + " | ".join(titles) + " |", "| --- " * (len(titles) + 1) + "|"]
    for condition in dict.fromkeys(cell.condition for cell in cells):
        measured = [percent(found[condition, column]) for column in MEASURED]
        printed = [printed_number(condition, *column) for column in PUBLISHED]
        numbers = ["–" if number is None else f"{number.percent:.1f}" for number in printed]
        lines.append(f"| {condition_title(condition)} | " + " | ".join([*measured, *numbers]) + " |")
    published = f"The published numbers are of {CLASSIFIER} on {IMAGES} images."
    about = [*banner(run, cells), subject(run, cells), "Accuracy in per cent, Wilson 95 % intervals.", published]
    return "\n".join([*lines, "", " ".join(about)])


def _filled(path: Path, tables: str) -> tuple[Path, str]:
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    return path, "\n\n".join([before + BEGIN, tables, END]) + after


if __name__ == "__main__":
    for path, text in pages():
        write_atomically(path, text)
