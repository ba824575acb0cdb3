"""Compare two reconstructions of the same images, each at one budget.

    python benchmarks/compare.py --first A/table2.jsonl --second B/table2.jsonl --budgets 2000 1000 > compare.md

Several files of one side are pooled, such as those of two seeds, which have other images. The report has the
accuracies, their difference and a paired test, on the images and conditions that both sides have.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from front_report import TESTED, tested

from dipdefense.config import DIPConfig
from dipdefense.evaluation import Run, command_line, read_export
from dipdefense.evaluation.protocol import condition_order, condition_title
from dipdefense.evaluation.report import Section, markdown, provenance
from dipdefense.evaluation.statistics import in_percent


class Image(NamedTuple):
    """An image as records know it."""

    image: str
    content: str


Outcomes = Mapping[str, Mapping[Image, float]]
"""By condition, then by image: the share of the defence's seeds with which it is classified correctly."""


def outcomes(runs: Sequence[Run], budget: int) -> Outcomes:
    """The outcomes of the reconstruction at a budget, from runs of different images.

    Raises:
        ValueError: two runs have the same image, or a run has no outcome at the budget.
    """
    pooled: dict[str, dict[Image, float]] = defaultdict(dict)
    for run in runs:
        own: dict[str, dict[Image, list[bool]]] = defaultdict(lambda: defaultdict(list))
        for record in run.records:
            if (record.defence, record.budget) == ("dip", budget):
                own[record.condition][Image(record.image, record.content)].append(record.correct)
        if not own:
            raise ValueError(f"a record has no reconstructions at {budget} iterations")
        for condition, images in own.items():
            if twice := pooled[condition].keys() & images.keys():
                raise ValueError(f"two records of one side have the image {min(twice).image}")
            pooled[condition] |= {image: fmean(seeds) for image, seeds in images.items()}
    return pooled


def rows(first: Outcomes, second: Outcomes, only: Collection[str] | None = None) -> Iterator[list[str]]:
    """The table: a row for each condition that both have, and the mean over them.

    Fewer conditions may have more images in common: ``only`` names those to compare.

    Raises:
        ValueError: the two have no image in common, or a condition of ``only`` is not in both.
    """
    both = first.keys() & second.keys()
    if missing := set(only or ()) - both:
        raise ValueError(f"the two sides do not both have the condition {min(missing)}")
    conditions = sorted(both if only is None else only, key=condition_order)
    common = [first[name].keys() & second[name].keys() for name in conditions]
    images = sorted(set.intersection(*common)) if common else []
    if not images:
        raise ValueError("the two sides have no image in common")
    pairs = {condition_title(name): [(first[name][i], second[name][i]) for i in images] for name in conditions}
    pairs["mean"] = [
        (fmean(one for one, _ in own), fmean(other for _, other in own)) for own in zip(*pairs.values(), strict=True)
    ]
    yield ["condition", "n", "first, %", "second, %", *TESTED]
    for title, own in pairs.items():
        shares = [in_percent(fmean(side), len(own)) for side in zip(*own, strict=True)]
        yield [title, str(len(own)), *shares, *tested(own)]


def report(
    first: Sequence[Run], second: Sequence[Run], budgets: Sequence[int], only: Collection[str] | None = None
) -> str:
    """The comparison in Markdown.

    Raises:
        ValueError: the classifiers differ, or see ``outcomes`` and ``rows``.
    """
    if len(classifiers := {run.configuration["weights"] for run in (*first, *second)}) > 1:
        raise ValueError(f"the records are of {len(classifiers)} classifiers")
    table = list(rows(outcomes(first, budgets[0]), outcomes(second, budgets[1]), only))
    about = (
        f"{first[0].configuration['classifier']}, defence-unaware: accuracy is not robustness. Accuracy in per cent "
        "with the Wilson 95 % interval; on how many images the first is right more often than the second, and less "
        "often; exact sign test, two-sided, not corrected; the mean difference in points with its 95 % interval "
        "(Newcombe's for yes or no, t for shares)."
    )
    sides = (*(("first", run, budgets[0]) for run in first), *(("second", run, budgets[1]) for run in second))
    return markdown(
        [
            Section("Two reconstructions of the same images", [about]),
            Section("Accuracy", table=table),
            Section(
                "The two",
                items=[
                    f"{side}: {budget} iterations, {told}"
                    for (side, _, budget), told in zip(sides, _settings([run for _, run, _ in sides]), strict=True)
                ],
            ),
            *(Section(f"Provenance: {side}", items=list(provenance(run))) for side, run, _ in sides),
        ]
    )


def _settings(runs: Sequence[Run]) -> list[str]:
    """Backend, precision, and the numbers of the networks in which the runs differ."""
    configs = [dataclasses.asdict(DIPConfig.from_json(run.configuration["dip"])) for run in runs]
    names = [name for name in configs[0] if len({repr(config[name]) for config in configs}) > 1]
    return [
        ", ".join(
            [f'backend "{run.configuration["backend"]}"', run.configuration["precision"]]
            + [f"{name} {config[name]}" for name in names]
        )
        for run, config in zip(runs, configs, strict=True)
    ]


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for side in ("first", "second"):
        parser.add_argument(f"--{side}", type=command_line.existing_file, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--budgets", type=command_line.count, nargs=2, required=True, metavar=("FIRST", "SECOND"))
    parser.add_argument("--conditions", nargs="+", metavar="CONDITION", help="only these (default: all that both have)")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read both sides and print the report."""
    parser, given = parse(arguments)
    try:
        first, second = ([read_export(file) for file in files] for files in (given.first, given.second))
        print(report(first, second, given.budgets, given.conditions))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
