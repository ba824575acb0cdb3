"""Attackers who know the defence × defences: setting and measurement.

All of them are measured on the same correctly classified images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipdefense.attacks.adaptive import Threat
from dipdefense.config import Backend
from dipdefense.evaluation import command_line
from dipdefense.evaluation.adaptive.conditions import (
    MOST_SEED,
    STATES,
    Target,
    asked,
    conditions,
    judging_seeds,
    rounds,
    with_known_draws,
)
from dipdefense.evaluation.adaptive.levels import LEVELS, Level
from dipdefense.evaluation.adaptive.names import Norm, named
from dipdefense.evaluation.defences import Defence, randomisation, undefended
from dipdefense.evaluation.measurement import joined, measure, reconstruction_of
from dipdefense.evaluation.protocol import Condition
from dipdefense.evaluation.records import Run
from dipdefense.evaluation.subject import ReconstructionSetting, Subject
from dipdefense.purifier import DIPPurifier
from dipdefense.randomization import RandomResizePad

DEFENCES = ("none", "randomisation", "dip")
"""The defences that are attacked, in the order of a table's columns."""

EXPORTS = "adaptive*.jsonl"
"""The files of records that a folder's store takes up."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveSetting(ReconstructionSetting):
    """An adaptive evaluation, as a command line asks for it.

    ``seeds`` has one seed, that of the images, the attacks and the draws that judge them.

    Attributes:
        level: the attackers.
        attackers: names of those that are measured now; all of the level's by default.
        epsilons: in 1/255 for Linf, norms for L2.
        norm: "Linf" or "L2".
        defences: of ``DEFENCES``.
        dry_run: print the plan and stop.
        report: measure nothing, and report on the attacks that are stored in full.
    """

    level: Level
    attackers: tuple[str, ...]
    epsilons: tuple[float, ...]
    norm: Norm = "Linf"
    defences: tuple[str, ...] = DEFENCES
    dry_run: bool = False
    report: bool = False

    @property
    def draws(self) -> tuple[int, ...]:
        """The seeds of the fresh draws; the first also serves the attacks."""
        return judging_seeds(self.level, self.seeds[0])


def parse_arguments(description: str | None, arguments: Sequence[str] | None = None) -> AdaptiveSetting:
    """The setting that a command line asks for, with defaults for its device.

    Raises:
        SystemExit: 2, after one line on stderr, if the arguments cannot be used.
    """
    parser = command_line.parser(description, command_line.add_subject, command_line.add_reconstruction)
    add = parser.add_argument
    add("--level", choices=LEVELS, default="quick", help="attackers and their strength (default: %(default)s)")
    add("--attackers", nargs="+", metavar="NAME", help="measure only these of the level's attackers and controls now")
    add(
        "--epsilon", type=command_line.strength, nargs="+", default=[8.0], help="in 1/255; for L2 the norm (default: 8)"
    )
    add("--norm", choices=("Linf", "L2"), default="Linf", help="default: %(default)s")
    add("--defences", nargs="+", choices=DEFENCES, default=DEFENCES, help="default: %(default)s")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--dry-run", action="store_true", help="print purifications an image and the expected time, and stop")
    either("--report", action="store_true", help="measure nothing, and report on the attacks that are stored in full")
    given = command_line.parse(parser, _defaults, arguments)
    level = LEVELS[given.level]
    known = [*level.attacks, *level.controls]
    if unknown := sorted(set(given.attackers or ()) - set(known)):
        parser.error(f"the level {level.name} has the attackers {', '.join(known)}; got {', '.join(unknown)}")
    try:
        for epsilon in given.epsilon:
            Threat(epsilon=epsilon, norm=given.norm)
    except ValueError as error:
        parser.error(str(error))
    if len(given.seed) > 1:
        parser.error(f"--seed takes one seed here, from which all draws derive; got {given.seed}")
    if given.seed[0] > MOST_SEED:
        parser.error(f"--seed must be at most {MOST_SEED}, got {given.seed[0]}")
    return AdaptiveSetting(
        **command_line.subject_of(given),
        **command_line.reconstruction_of(given),
        level=level,
        attackers=tuple(given.attackers or known),
        epsilons=tuple(sorted(set(given.epsilon))),
        norm=given.norm,
        defences=tuple(name for name in DEFENCES if name in given.defences),
        dry_run=given.dry_run,
        report=given.report,
    )


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """Defaults by device: on a CPU, a reduced setting that takes minutes."""
    if torch.device(given.device).type != "cpu":
        return {"config": "paper", "budgets": [500, 1000], "batch": 32, "images": 20}
    # Under ten minutes on two cores at 224×224, where one purification of 20 iterations takes a second and a half.
    return {"config": "compact", "budgets": [20], "batch": 1, "images": 2}


@dataclass(frozen=True)
class Opponents:
    """The defences of an evaluation as judges and as targets.

    Attributes:
        defences: as they judge.
        targets: as they are attacked.
        settings: of the reconstruction, for the run's configuration.
    """

    defences: tuple[Defence, ...]
    targets: tuple[Target, ...]
    settings: Mapping[str, Any]


def opponents(setting: AdaptiveSetting, subject: Subject) -> Opponents:
    """The defences that a setting asks for, as judges and as targets.

    ``DEFENCES`` are no defence, randomisation with one pass, and the reconstruction at each budget.

    Raises:
        ValueError: the images are too small for the network, or the backend does not run on the device.
    """
    config = subject.fitted(setting.config)
    reconstruction = reconstruction_of(setting, subject, config)
    backend: Backend = reconstruction.settings["backend"]

    def purifier(defence: str, budget: int) -> nn.Module:
        if defence == "none":
            return nn.Identity()
        if defence == "randomisation":
            return RandomResizePad()
        return DIPPurifier(
            budget, config=config, precision=setting.precision, backend=backend, batch_size=setting.batch
        )

    judges = [each for each in (undefended(), randomisation((1,)), reconstruction) if each.name in setting.defences]
    targets = [
        Target((judge.name, budget), purifier(judge.name, budget), keeps_shape=judge.name != "randomisation")
        for judge in judges
        for budget in judge.budgets
    ]
    return Opponents(tuple(judges), tuple(targets), reconstruction.settings)


def measure_adaptive(setting: AdaptiveSetting, subject: Subject, against: Opponents | None = None) -> Run:
    """Complete the stored outcomes of an adaptive evaluation, and return them.

    They are stored in ``setting.out``; see ``measure``. With ``setting.report`` it measures nothing.

    Raises:
        ValueError, StoreError, ExportError: as there.
    """
    against = against or opponents(setting, subject)
    level, draws = setting.level, setting.draws
    runs = [
        measure(
            setting,
            replace(subject, chosen=part),
            conditions=measured(setting, against, repeat=repeat, folder=setting.out / STATES),
            defences=[*against.defences, *with_known_draws(level, against.targets)],
            configuration={**against.settings, "adaptive": level.settings()},
            seeds=draws,
            asked=asked(level, draws),
            exports=EXPORTS,
            only_stored=setting.report,
        )
        for repeat, part in rounds(level, subject.chosen)
    ]
    return joined(runs)


def measured(
    setting: AdaptiveSetting, against: Opponents, *, repeat: int = 0, folder: Path | None = None
) -> dict[str, Condition | None]:
    """Of all conditions, those of ``setting.attackers``, clean images and noise."""
    every = conditions(
        setting.level, against.targets, epsilons=setting.epsilons, norm=setting.norm, repeat=repeat, folder=folder
    )
    kept = {*setting.attackers, "noise"}
    return {name: each for name, each in every.items() if (parts := named(name)) is None or parts.attack in kept}
