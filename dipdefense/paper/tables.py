"""Tables 1 and 2 of the paper: conditions, command line and measurement."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dipdefense.attacks import TABLE_2, Attack
from dipdefense.checks import check_backend
from dipdefense.config import PAPER_BUDGETS
from dipdefense.distributed import spread
from dipdefense.evaluation import (
    ReconstructionSetting,
    Run,
    Subject,
    command_line,
    low_pass,
    measure,
    open_subject,
    randomisation,
    undefended,
)
from dipdefense.evaluation.measurement import reconstruction_of
from dipdefense.evaluation.protocol import DEFENCES, condition_name
from dipdefense.evaluation.report import reduced_setting
from dipdefense.evaluation.runner import Spread
from dipdefense.evaluation.statistics import Cell, summarise
from dipdefense.paper.published import IMAGES, reductions
from dipdefense.stopping import RuleName, check_stopping

PASSES = (1, 30)
"""Passes of randomisation: one an image, and as many as the submission of Xie et al. 2017 averages."""

FACTORS = (2, 3)
"""By which the control without a network makes each image smaller, and larger again."""

_CONTROLS = tuple(Attack("noise", epsilon) for epsilon in (2, 5, 10))
_ROUNDED = tuple(replace(attack, rounded=True) for attack in TABLE_2)
CONDITIONS: dict[str, Attack | None] = {
    condition_name(attack): attack for attack in (None, *TABLE_2, *_CONTROLS, *_ROUNDED)
}
"""The conditions that a table may have: clean, the adversaries of Table 2, noise of the same norm, and the adversaries
with their images rounded to 8 bits."""

ADVERSARIES = tuple(condition_name(attack) for attack in TABLE_2)
"""The conditions that Table 2 averages over."""

TABLES: dict[int, tuple[str, ...]] = {
    1: ("clean", "bi-10"),
    2: ("clean", *ADVERSARIES, *(condition_name(attack) for attack in _CONTROLS)),
}
"""The conditions of each table. Table 1 has one attack beside its clean images, since the accuracy on these alone says
little of a defence. The tables share their outcomes: none is measured twice."""


@dataclass(frozen=True, kw_only=True)
class TableSetting(ReconstructionSetting):
    """One table, as a command line asks for it.

    Attributes:
        table: 1 or 2.
        conditions: keys of ``CONDITIONS``.
        defences: of ``DEFENCES``.
        stopping: "variance" or "trend" to end each image's fit by itself; None for the paper's fixed budgets.
        spread: how the work reaches other processes; None for this one.
    """

    table: int
    conditions: tuple[str, ...]
    defences: tuple[str, ...]
    stopping: RuleName | None = None
    spread: Spread | None = None


def parse_arguments(*, table: int, description: str, arguments: Sequence[str] | None = None) -> TableSetting:
    """The setting that a command line asks for.

    The device and the data decide what the command line leaves open. A GPU gets the paper's network and budgets, and of
    given data 500 images of all classes, for few sets have 500 in 200 classes. A CPU gets a reduced setting that takes
    minutes, and every report of it says so.

    Args:
        table: 1 or 2.
        description: of the script, for ``--help``.
        arguments: instead of the process's own.

    Raises:
        SystemExit: 2, after one line on stderr, if the arguments cannot be used.
    """
    groups = (command_line.add_subject, command_line.add_reconstruction, command_line.add_stopping, _add_engine)
    parser = command_line.parser(description, *groups)
    add = parser.add_argument
    add("--conditions", nargs="+", choices=CONDITIONS, metavar="CONDITION", help=f"of {', '.join(CONDITIONS)}")
    add("--defences", nargs="+", choices=DEFENCES, default=DEFENCES, help="default: %(default)s")
    given = command_line.parse(parser, partial(_defaults, table), arguments)
    if given.engine != "ray" and (given.address, given.workers) != (None, None):
        parser.error("--address and --workers are for --engine ray")
    return TableSetting(
        **command_line.subject_of(given),
        **command_line.reconstruction_of(given),
        table=table,
        conditions=tuple(name for name in CONDITIONS if name in given.conditions),
        defences=tuple(name for name in DEFENCES if name in given.defences),
        stopping=given.stopping,
        spread=partial(spread, workers=given.workers, address=given.address) if given.engine == "ray" else None,
    )


def measure_table(setting: TableSetting, subject: Subject | None = None) -> Run:
    """Complete the stored outcomes of a table in ``setting.out``, and return them.

    See ``evaluation.measure``.

    Args:
        setting: from ``parse_arguments``.
        subject: from ``open_subject``; opened here where none is given.

    Raises:
        ValueError: there are fewer correctly classified images, or classes, than asked for; an export is broken; or the
            backend does not run on the device.
        StoreError: the store cannot be read or written.
        FileNotFoundError: there is no such data.
        ImportError: an optional package is missing.
    """
    check_backend(setting.backend, torch.device(setting.device))
    rule = check_stopping(setting.stopping)
    subject = subject or open_subject(setting)
    config = subject.fitted(setting.config)
    if "dip" in setting.defences:
        reasons = reductions(
            config, images=len(subject.chosen.indices), budgets=setting.budgets, shape=subject.shape,
            stopping=None if rule is None else rule.settings,
        )  # fmt: skip
        for warning in reduced_setting(reasons):
            print(warning, file=sys.stderr)
    reconstruction = reconstruction_of(setting, subject, config, stopping=rule)
    known = (undefended(), randomisation(PASSES), low_pass(FACTORS), reconstruction)
    return measure(
        setting,
        subject,
        conditions={name: CONDITIONS[name] for name in setting.conditions},
        defences=[defence for defence in known if defence.name in setting.defences],
        # Even without the reconstruction: a table that adds it later is then the same run.
        configuration=reconstruction.settings,
        exports="table*.jsonl",
        spread=setting.spread,
    )


def table_cells(run: Run) -> list[Cell]:
    """The cells of a run, with those of the average over Table 2's adversaries.

    The average is there if all of these were measured.

    Raises:
        ValueError: there are no records, or not every image has been through everything.
    """
    return summarise(run.records, averaged=ADVERSARIES)


def _add_engine(to: argparse.ArgumentParser) -> None:
    """Add the processes that the work is done in."""
    add = to.add_argument
    add("--engine", choices=("here", "ray"), default="here", help="this process, or Ray's workers (default: here)")
    add("--workers", type=command_line.count, help="of Ray: processes (default: one a GPU, or as the CPUs allow)")
    add("--address", help="of a running Ray cluster, such as auto (default: processes of this machine)")


def _defaults(table: int, given: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a command line leaves open."""
    if torch.device(given.device).type != "cpu":
        images = {} if given.data is None else {"images": IMAGES}
        return {"config": "paper", "budgets": PAPER_BUDGETS, "conditions": TABLES[table], "batch": 32} | images
    # Under ten minutes on two cores, where an iteration takes about a tenth of a second.
    budgets, conditions = {
        1: ((250, 500, 750), TABLES[1]),
        2: ((100, 200, 300), ("clean", *ADVERSARIES, "noise-10")),
    }[table]
    return {"config": "compact", "budgets": budgets, "conditions": conditions, "batch": 1, "images": 2}
