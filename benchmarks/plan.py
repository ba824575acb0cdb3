"""The number of images that decides each of the paper's claims, and the cost.

    python benchmarks/plan.py benchmarks/results/table2-reconstruction/table2.jsonl
    python benchmarks/plan.py benchmarks/results/table2-reconstruction/table2.jsonl --images 20

The plan, made before a long measurement, follows from the differences measured so far. Each comparison's split of the
same images gives the probabilities for the exact McNemar test (80 % power at the 5 % level, for that comparison alone:
a claim about several attacks is corrected by Holm's procedure, and takes more). A small record makes a rough plan: the
range covers the equally plausible splits with one image more or less on either side. The seconds are the record's
median for one reconstruction at the largest budget. With --images the plan is that of the first images, beside what the
whole record took: the number of images from which on the comparison stayed decided, again by itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace

from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.command_line import count, existing_file
from dipdefense.evaluation.power import images_needed, smoothed
from dipdefense.evaluation.protocol import condition_title
from dipdefense.evaluation.statistics import compare, leaning, mcnemar
from dipdefense.paper.claims import SIGNIFICANT, Comparison, comparisons
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
    parser.add_argument("record", type=existing_file, help="exported records with the reconstruction, table2.jsonl")
    parser.add_argument("--images", type=count, help="plan from so many first images (default: all)")
    given = parser.parse_args()
    try:
        run = read_export(given.record)
    except ValueError as error:
        parser.error(str(error))
    if all(record.defence != "dip" for record in run.records):
        parser.error(f"{given.record} has no outcomes of the reconstruction, which a plan needs")
    print("\n".join(plan(run, images=given.images)))


def plan(run: Run, *, images: int | None = None) -> Iterator[str]:
    """The lines of the table.

    Args:
        run: with the reconstruction.
        images: plan from so many first images, and add what the whole run took; None plans from all of them.
    """
    first = run if images is None else replace(run, records=tuple(r for r in run.records if r.position < images))
    seconds = _seconds(run)
    taken = "" if images is None else f" taken, of {table_cells(run)[0].n} |"
    yield f"| claim | condition | compared | n | split | p | images needed | hours each condition |{taken}"
    yield "| --- " * (8 + bool(taken)) + "|"
    for (name, _, pairs), (_, _, whole) in zip(
        comparisons(table_cells(first)), comparisons(table_cells(run)), strict=True
    ):
        for pair, later in zip(pairs, whole, strict=True):
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
                f"{f' {_decided_from(later)} |' if taken else ''}"
            )


def _decided_from(pair: Comparison) -> str:
    """The number of images from which on the test stays significant.

    It has a note if the test goes the other way, and is "not decided" if there is no such number.
    """
    higher, lower = (list(next(iter(cell.outcomes.values())).values()) for cell in (pair.higher, pair.lower))
    ahead = [one > other for one, other in zip(higher, lower, strict=True)]
    behind = [one < other for one, other in zip(higher, lower, strict=True)]
    # One image never decides.
    undecided = max(n for n in range(1, len(ahead) + 1) if mcnemar(ahead[:n], behind[:n]).p >= SIGNIFICANT)
    way = leaning(pair.higher, pair.lower)
    if undecided == len(ahead) or not way:
        return "not decided"
    return f"{undecided + 1}{'' if way > 0 else ', the other way'}"


def _needed(pair: Comparison) -> tuple[int | None, int | None]:
    """The fewest and most images that this split needs; None for more than ``MOST``."""
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
