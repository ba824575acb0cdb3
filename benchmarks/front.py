"""Accuracy against time at 224×224, by network, image size and iterations.

    python benchmarks/front.py
    python benchmarks/front.py --data IMAGENET/val --images 20 --candidates compact half-width half-size
    python benchmarks/front.py --data IMAGENET/val --images 20 --candidates half-size --longer 2

Every candidate is fitted to the same images, clean and attacked (defence-unaware), and its outputs are classified every
50 iterations, on smaller images with `--longer` beyond the compact network's last. Beside them stand two filters
without a network, which make the image smaller and larger again. The report compares the accuracy at each budget, the
mean over the conditions, with the time; the front has the points that no other beats in both. Times are relative to the
compact network's and are measured at the end, all candidates in turns in one process. Without options it uses packaged
images at a reduced setting that is too small to decide anything. A killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from front_report import CONDITIONS, REFERENCE, Point, markdown, picture

from dipdefense.checks import Precision
from dipdefense.config import DIPConfig
from dipdefense.evaluation import (
    STORE,
    Run,
    Setting,
    Subject,
    circumstances,
    command_line,
    deep_image_prior,
    low_pass,
    measure,
    open_subject,
)
from dipdefense.evaluation.protocol import attack_named
from dipdefense.evaluation.report import png, write_files
from dipdefense.evaluation.statistics import summarise
from dipdefense.paper.labels import column_title
from dipdefense.paper.tables import FACTORS
from dipdefense.reconstruct import reconstruct

COMPACT = DIPConfig.compact()
ROUNDS, TIMED = 5, 4
"""Rounds of the timing, and iterations timed in each after two of warm-up."""


HALF_SIZE = DIPConfig.half_size()
CANDIDATES = {
    "compact": COMPACT,
    "paper": DIPConfig.paper(),
    "half-width": replace(COMPACT, channels=16),
    "double-width": replace(COMPACT, channels=64),
    "3-scales": replace(COMPACT, scales=3),
    "no-skips": replace(COMPACT, skip_channels=0),
    "skips-16": replace(COMPACT, skip_channels=16),
    "rate-0.02": replace(COMPACT, learning_rate=0.02),
    "rate-0.005": replace(COMPACT, learning_rate=0.005),
    "half-size": HALF_SIZE,
    "half-size-half-width": replace(HALF_SIZE, channels=16),
    "half-size-double-width": replace(HALF_SIZE, channels=64),
    "half-size-rate-0.02": replace(HALF_SIZE, learning_rate=0.02),
    "half-size-paper": replace(DIPConfig.paper(), reduction=2),
    "third-size": replace(COMPACT, reduction=3),
}
"""The networks by name. Each but the paper's two differs from the compact network, or from it at half size, in one
respect."""

LOW_PASS = "low-pass"
"""The control without a network, whose filters stand beside the candidates."""


@dataclass(frozen=True)
class Times:
    """Seconds per iteration by candidate, one number for each round."""

    rounds: Mapping[str, Sequence[float]]

    def relative(self, name: str) -> float:
        """The median over the rounds of the ratio to the compact network."""
        own, reference = self.rounds[name], self.rounds[REFERENCE]
        return statistics.median(a / b for a, b in zip(own, reference, strict=True))


def precision_of(name: str, given: argparse.Namespace) -> Precision:
    """The candidate's precision: bf16 if `--bf16` names it, else `--precision`."""
    return "bf16" if name in given.bf16 else given.precision


def timed(names: Sequence[str], given: argparse.Namespace, shape: Sequence[int]) -> Times:
    """Fit every candidate in turns for a few iterations."""
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            marks = [time.perf_counter()]
            images = torch.rand(given.batch, *shape, device=given.device)

            def mark(marks: list[float] = marks, device: torch.device = images.device) -> None:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                marks.append(time.perf_counter())

            reconstruct(
                images, budgets=(2 + TIMED,), config=CANDIDATES[name], seed=0,
                precision=precision_of(name, given), backend=given.backend, on_iteration=mark,
            )  # fmt: skip
            rounds[name].append((marks[-1] - marks[2]) / TIMED)
    return Times(rounds)


def points(runs: Mapping[str, Run], times: Times) -> list[Point]:
    """The points of the filters, and of every candidate at every budget.

    Times are in iterations of the compact network.
    """
    found = []
    for name, run in runs.items():
        for cell in summarise(run.records, averaged=tuple(CONDITIONS)):
            if cell.condition == "average":
                outcomes = next(iter(cell.outcomes.values()))
                if name == LOW_PASS:
                    found.append(Point(column_title(*cell.column), 0, 0.0, outcomes))
                else:
                    found.append(Point(name, cell.budget, cell.budget * times.relative(name), outcomes))
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; see the module."""
    made = command_line.parser(__doc__, command_line.add_subject, command_line.add_budgets, command_line.add_fitting)
    made.add_argument("--candidates", nargs="+", choices=CANDIDATES, metavar="NAME", help=", ".join(CANDIDATES))
    made.add_argument(
        "--longer", type=command_line.count, default=1, metavar="FACTOR",
        help="candidates on smaller images continue, in the same steps, to FACTOR times the last budget (default: 1)",
    )  # fmt: skip
    made.add_argument(
        "--bf16", nargs="+", choices=CANDIDATES, default=[], metavar="NAME",
        help="candidates fitted in bf16, whatever --precision says (default: none)",
    )  # fmt: skip

    def defaults(given: argparse.Namespace) -> dict[str, Any]:
        large = given.data is not None
        names = [name for name in CANDIDATES if name != "paper"] if large else ["compact", "half-size"]
        budgets = list(range(50, 1001, 50)) if large else [100, 200, 300]
        batch = 32 if torch.device(given.device).type == "cuda" else 1
        return {"candidates": names, "budgets": budgets, "batch": batch, "images": 20 if large else 1}

    given = command_line.parse(made, defaults, arguments)
    if len(given.seed) > 1:
        made.error(f"--seed takes one seed here; got {given.seed}")
    unknown = [name for name in given.bf16 if name not in (REFERENCE, *given.candidates)]
    if unknown:
        made.error(f"--bf16 takes names of --candidates; got {', '.join(unknown)}")
    return given


def budgets_of(name: str, given: argparse.Namespace) -> tuple[int, ...]:
    """The candidate's budgets: those of `--budgets`.

    On smaller images they continue to `--longer` times the last.
    """
    rounds = given.longer if CANDIDATES[name].reduction > 1 else 1
    return tuple(budget + k * given.budgets[-1] for k in range(rounds) for budget in given.budgets)


def measured(given: argparse.Namespace, setting: Setting, subject: Subject) -> dict[str, Run]:
    """The outcomes of the filters and of every candidate, the compact network first."""
    runs = {}
    conditions = {name: attack_named(name) for name in CONDITIONS}
    for name in dict.fromkeys([LOW_PASS, REFERENCE, *given.candidates]):
        budgets = FACTORS if name == LOW_PASS else budgets_of(name, given)
        print(f"{name}: {setting.images} images, to {budgets[-1]}", file=sys.stderr)
        way = low_pass(budgets) if name == LOW_PASS else deep_image_prior(
            budgets, config=subject.fitted(CANDIDATES[name]), precision=precision_of(name, given),
            backend=given.backend, shape=subject.shape, batch=given.batch, device=given.device,
        )  # fmt: skip
        runs[name] = measure(setting, subject, conditions=conditions, defences=[way], exports=f"front-{name}.jsonl")
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, time, and write the report."""
    given = parse(arguments)
    with command_line.script(given.out / STORE):
        with command_line.usage():
            setting = Setting(**command_line.subject_of(given))
            subject = open_subject(setting)
        about = circumstances(torch.device(given.device))
        runs = measured(given, setting, subject)
        times = timed([name for name in runs if name != LOW_PASS], given, subject.shape)
        found = points(runs, times)
        report = markdown(
            found, images=len(subject.ids), source=subject.source, classifier=subject.classifier.name, bf16=given.bf16
        )
        files: dict[str, str | bytes] = {
            "front.md": report,
            "front.png": png(picture(found)),
            "front-times.json": json.dumps({"circumstances": about, "seconds": times.rounds}),
        }
        records = {f"front-{name}.jsonl": run for name, run in runs.items()}
        command_line.finish(write_files(given.out, files, records), given.out / STORE, runs.values())


if __name__ == "__main__":
    main()
