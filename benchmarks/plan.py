"""A plan before a long measurement: the number of images that decides each of the paper's claims, and the cost.

    python benchmarks/plan.py benchmarks/results/table2-reconstruction/table2.jsonl

The plan follows from the differences measured so far. Each comparison's split of the same images gives the
probabilities for the exact McNemar test (80 % power at the 5 % level, for that comparison alone: a claim about several
attacks is corrected by Holm's procedure, and takes more). A small record makes a rough plan: the range
covers the equally plausible splits with one image more or less on either side. The seconds are the record's median for
one reconstruction at the largest budget.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.power import images_needed, smoothed
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.statistics import compare
from dipdefense.paper.claims import Comparison, comparisons
from dipdefense.paper.labels import column_title
from dipdefense.paper.published import CLAIMS
from dipdefense.paper.tables import table_cells

MOST = 500
"""The most images that a plan considers: the paper's number."""


def main() -> None:
    """Read the command line and print the plan as a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("record", type=Path, help="exported records with the reconstruction, table2.jsonl")
    given = parser.parse_args()
    run = read_export(given.record)
    if all(record.defence != "dip" for record in run.records):
        parser.error(f"{given.record} has no outcomes of the reconstruction, which a plan needs")
    print("\n".join(plan(run)))


def plan(run: Run) -> Iterator[str]:
    """The lines of the table."""
    cells = table_cells(run)
    seconds = _seconds(run)
    yield "| claim | condition | compared | n now | split | p | images needed | hours each condition |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, _, pairs in comparisons(cells):
        for pair in pairs:
            split = compare(pair.higher, pair.lower)
            low, high = _needed(pair)
            compared = " : ".join(column_title(*cell.column) for cell in (pair.higher, pair.lower))
            hours = (
                "–"
                if high is None or "dip" not in (pair.higher.defence, pair.lower.defence)
                else f"{high * seconds / 3600:.1f}"
            )
            yield (
                f"| {CLAIMS[name].statement} | {condition_title(pair.condition)} | {compared} | {pair.higher.n} | "
                f"{split.only_first} : {split.only_second} | {split.p:.2g} | {_range(low, high)} | {hours} |"
            )


def _needed(pair: Comparison) -> tuple[int | None, int | None]:
    """The fewest and the most images that this split asks for; None for more than ``MOST``."""
    n, split = pair.higher.n, compare(pair.higher, pair.lower)
    counts = []
    for shift in (-1, 1):
        # One image more than there are, or fewer than none, is no split.
        first = min(n, max(0, split.only_first + shift))
        second = min(n - first, max(0, split.only_second - shift))
        counts.append(images_needed(smoothed(first, n), smoothed(second, n), most=MOST))
    known = [count for count in counts if count is not None]
    return (min(known) if known else None, None if None in counts else max(known))


def _range(low: int | None, high: int | None) -> str:
    if low is None:
        return f"more than {MOST}"
    return f"{low} to {high}" if high is not None else f"{low} or more"


def _seconds(run: Run) -> float:
    """The median seconds of an image's reconstruction at the largest budget."""
    most = max(record.budget for record in run.records if record.defence == "dip")
    return statistics.median(r.seconds for r in run.records if r.defence == "dip" and r.budget == most)


if __name__ == "__main__":
    main()
