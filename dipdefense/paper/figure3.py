"""Figure 3 of the paper, from the command line to its written report.

The true class's confidence against the iterations, for robust and non-robust CIFAR-10 images, two architectures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dipdefense.evaluation import STORE, command_line
from dipdefense.paper.figure3_report import write_report
from dipdefense.paper.figure3_sets import (
    ARCHITECTURES,
    CLASSIFIER,
    IMAGES,
    ITERATIONS,
    RECORDED,
    SETS,
    FigureSetting,
    measure_sets,
    open_sets,
)
from dipdefense.paper.robust_sets import STEPS


def reproduce(*, description: str | None, weights: Path, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the report and print it.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    setting = parse_arguments(description=description, weights=weights, arguments=arguments)
    store = setting.out / STORE
    with command_line.script(store):
        with command_line.usage():
            sets = open_sets(setting)
        runs = measure_sets(setting, sets)
        command_line.finish(write_report(runs, sets, folder=setting.out, batch=setting.batch), store, runs.values())


def parse_arguments(*, description: str | None, weights: Path, arguments: Sequence[str] | None = None) -> FigureSetting:
    """The setting that a command line asks for.

    The device decides the iterations, batch and steps that the command line leaves open.

    Args:
        description: of the script, for ``--help``.
        weights: folder of the networks that are used where none is given: cifar10-external.pt, -robust.pt and
            -standard.pt.
        arguments: instead of the process's own.

    Raises:
        SystemExit: 2, after one line on stderr, if the arguments cannot be used.
    """
    parser = command_line.parser(description, command_line.add_source, command_line.add_fitting)
    parser.set_defaults(classifier=CLASSIFIER)
    add, file, folder = parser.add_argument, command_line.existing_file, command_line.existing
    add("--images", type=command_line.count, help=f"images of each set (default: {IMAGES}, or all packaged ones)")
    add("--seed", type=command_line.seed, nargs="+", default=[0], help="the first chooses the images")
    add("--batch", type=command_line.count, help="images at once (default: 32 on a GPU, 10 on a CPU)")
    add("--sets", nargs="+", choices=SETS, default=SETS[:3], help="default: %(default)s")
    add("--architectures", nargs="+", type=int, choices=ARCHITECTURES, default=tuple(ARCHITECTURES))
    add("--iterations", nargs="+", type=command_line.count, help="of all architectures, or of each")
    add("--robust-network", type=file, default=weights / "cifar10-robust.pt", help=f"weights of a {CLASSIFIER}")
    add("--standard-network", type=file, default=weights / "cifar10-standard.pt", help=f"weights of a {CLASSIFIER}")
    add("--steps", type=command_line.count, help=f"of the feature matching (published: {STEPS}; default on a CPU: 200)")
    for name in SETS[1:]:
        add(f"--{name}-set", type=folder, help="folder of the released set, instead of one made here")
    given = command_line.parse(parser, _defaults, arguments)
    if len(given.iterations) not in (1, len(given.architectures)):
        parser.error(f"argument --iterations: one number, or one for each of the {len(given.architectures)} networks")
    if min(given.iterations) < (least := RECORDED[2]):
        parser.error(f"argument --iterations: at least {least}, or there is no curve")
    if given.classifier == CLASSIFIER and given.weights is None:
        given.weights = weights / "cifar10-external.pt"
    given.classes = None
    each = given.iterations * (len(given.architectures) if len(given.iterations) == 1 else 1)
    folders = {name: getattr(given, f"{name.replace('-', '_')}_set") for name in SETS[1:]}
    return FigureSetting(
        **command_line.subject_of(given),
        sets=tuple(name for name in SETS if name in given.sets),
        iterations=dict(zip(given.architectures, each, strict=True)),
        robust_network=given.robust_network,
        standard_network=given.standard_network,
        released={name: path for name, path in folders.items() if name in given.sets and path is not None},
        steps=given.steps,
        precision=given.precision,
        backend=given.backend,
    )


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a command line leaves open."""
    if torch.device(given.device).type != "cpu":
        return {"iterations": _each(ITERATIONS, given), "batch": 32, "steps": STEPS}
    # On the packaged images under ten minutes on two cores.
    return {"iterations": _each({1: 500, 2: 1500}, given), "batch": 10, "steps": 200}


def _each(iterations: Mapping[int, int], given: argparse.Namespace) -> list[int]:
    return [iterations[architecture] for architecture in given.architectures]
