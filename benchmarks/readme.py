"""Write the tables of the READMEs and the documentation from the records in benchmarks/results.

python benchmarks/readme.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speed import hardware

from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.protocol import condition_title
from dipdefense.files import write_atomically
from dipdefense.paper.labels import banner, column_title, percent, published_title, subject
from dipdefense.paper.published import CLASSIFIER, IMAGES, printed_number
from dipdefense.paper.report import headline
from dipdefense.paper.tables import table_cells

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("table2-baselines", "table2-reconstruction", "table2-paper-network", "table2-cifar10")
BEGIN, END = "<!-- results: begin (written by benchmarks/readme.py) -->", "<!-- results: end -->"

FIRST_SCREEN = "table2-reconstruction"
MEASURED = (("none", 0), ("randomisation", 1), ("dip", 500), ("dip", 1000))
PUBLISHED = (("none", 0), ("dip", 500), ("dip", 1000))


def pages() -> Iterator[tuple[Path, str]]:
    """Each file, and its text as the records have it: tables stand between their markers."""
    runs = {source: read_export(RESULTS / source / "table2.jsonl") for source in SOURCES}
    yield _filled(ROOT / "README.md", brief(runs[FIRST_SCREEN]))
    yield _filled(ROOT / "benchmarks" / "README.md", "\n\n".join(headline(run) for run in runs.values()))
    speeds = hardware.read(RESULTS)
    yield RESULTS / "speed.csv", hardware.as_csv(speeds)
    yield _filled(ROOT / "docs" / "pages" / "speed.md", hardware.as_markdown(speeds))


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
