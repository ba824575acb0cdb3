"""A table of the paper from the command line to its written report."""

from __future__ import annotations

from dipdefense.evaluation import STORE
from dipdefense.paper.report import write_report
from dipdefense.paper.tables import measure_table, parse_arguments


def reproduce(*, table: int, description: str) -> None:
    """Read the command line, measure, write the report, and print it: all that table1.py and table2.py do."""
    setting = parse_arguments(table=table, description=description)
    text, *others = write_report(measure_table(setting), table=table, folder=setting.out)
    print(text.read_text())
    print("written:", *[text, *others], f"and {setting.out / STORE}")
