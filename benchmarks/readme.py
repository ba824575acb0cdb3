"""Write the tables of the READMEs and the documentation from the records.

The records are those in benchmarks/results. The main README also opens with the verdict of the adaptive records: the
accuracy in the worst case of the attacks, as far as it was measured.

python benchmarks/readme.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import readme_claims
from readme_adaptive import attacked, strongest, verdict
from speed import hardware

from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.adaptive.script import read_report
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.report import table
from dipdefense.files import write_atomically
from dipdefense.paper import figure1_report
from dipdefense.paper.labels import banner, column_title, published_title, subject
from dipdefense.paper.published import CLASSIFIER, IMAGES, printed_number
from dipdefense.paper.report import headline
from dipdefense.paper.tables import table_cells

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = (
    "table2-baselines", "table2-squeezenet", "table2-reconstruction", "table2-compact", "table2-half-size",
    "table2-squeezenet-half-size", "table2-paper-network", "table2-paper-network-bf16", "table2-cifar10",
    "table2-cifar10-architecture-2",
)  # fmt: skip
CURVES = tuple(sorted(path.parent.name for path in RESULTS.glob("*/figure1.jsonl")))
BEGIN, END = "<!-- results: begin (written by benchmarks/readme.py) -->", "<!-- results: end -->"
VERDICT = "<!-- verdict: begin (written by benchmarks/readme.py) -->", "<!-- verdict: end -->"

ATTACKED = "<!-- attacked: begin (written by benchmarks/readme.py) -->", "<!-- attacked: end -->"

FIRST_SCREEN = "table2-compact"
MEASURED = (("none", 0), ("randomisation", 1), ("low-pass", 3), ("dip", 1000))
PUBLISHED = (("none", 0), ("dip", 1000))

VERDICTS = ("adaptive-standard", "adaptive-architecture-2", "adaptive-half-size-224")
"""Records of attackers who know the defence that the README opens with."""

ADAPTIVE = (*VERDICTS, "adaptive-budgets", "adaptive-architecture-1", "adaptive-compact-224")
"""All of them. The others are of fewer attacks, or their budgets too small for clean images."""


def pages() -> Iterator[tuple[Path, str]]:
    """Each file and its new text, with the records' tables between its markers."""
    runs = {source: read_export(RESULTS / source / "table2.jsonl") for source in SOURCES}
    reports = {name: read_report(RESULTS / name) for name in ADAPTIVE}
    opening = [reports[name] for name in VERDICTS]
    path, text = _filled(ROOT / "README.md", f"{brief(runs[FIRST_SCREEN])} {_record(FIRST_SCREEN)}")
    text = _between(text, VERDICT, verdict(opening))
    yield path, _between(text, ATTACKED, f"{strongest(opening)} {_record(*VERDICTS)}")
    own_tables = {source: headline(run) for source, run in runs.items()}
    own_tables |= {name: attacked(report) for name, report in reports.items()}
    own_tables |= {
        source: figure1_report.headline(read_export(RESULTS / source / "figure1.jsonl")) for source in CURVES
    }
    titled = (f"**`{source}`**\n\n{own}" for source, own in own_tables.items())
    yield _filled(ROOT / "benchmarks" / "README.md", "\n\n".join(titled))
    speeds = hardware.read(RESULTS)
    yield RESULTS / "speed.csv", hardware.as_csv(speeds)
    yield _filled(ROOT / "docs" / "pages" / "speed.md", hardware.as_markdown(speeds))
    yield _filled(ROOT / "docs" / "pages" / "reproducing.md", readme_claims.as_markdown(RESULTS))


def _record(*names: str) -> str:
    """Where numbers come from."""
    return f"Record{'s' * (len(names) > 1)}: {', '.join(f'`benchmarks/results/{name}`' for name in names)}."


def brief(run: Run) -> str:
    """A few columns of a record beside the paper's."""
    cells = table_cells(run)
    found = {(cell.condition, cell.column): cell for cell in cells}
    titles = [column_title(*column) for column in MEASURED] + [published_title(*column) for column in PUBLISHED]
    rows = [["", *titles]]
    for condition in dict.fromkeys(cell.condition for cell in cells):
        measured = [found[condition, column].percent for column in MEASURED]
        printed = [printed_number(condition, *column) for column in PUBLISHED]
        numbers = ["–" if number is None else f"{number.percent:.1f}" for number in printed]
        rows.append([condition_title(condition), *measured, *numbers])
    published = f"The published numbers are of {CLASSIFIER} on {IMAGES} images."
    about = [*banner(run, cells), subject(run, cells[0].n), "Accuracy in per cent, Wilson 95 % intervals.", published]
    return "\n".join([*table(rows), "", " ".join(about)])


def _filled(path: Path, tables: str) -> tuple[Path, str]:
    return path, _between(path.read_text(), (BEGIN, END), tables)


def _between(text: str, markers: tuple[str, str], content: str) -> str:
    """The text with ``content`` between two markers."""
    before, rest = text.split(markers[0])
    _, after = rest.split(markers[1])
    return "\n\n".join([before + markers[0], content, markers[1]]) + after


if __name__ == "__main__":
    for path, text in pages():
        write_atomically(path, text)
