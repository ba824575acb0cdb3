"""Figure 1's conditions, its command line, and how it is measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dipdefense.attacks import Attack, AttackName
from dipdefense.config import DIPConfig
from dipdefense.evaluation import (
    ReconstructionSetting,
    Run,
    Subject,
    command_line,
    measure,
    undefended,
)
from dipdefense.evaluation.measurement import reconstruction_of
from dipdefense.evaluation.protocol import condition_name
from dipdefense.evaluation.report import reduced_setting
from dipdefense.paper.published import IMAGES, reductions

NAMES: tuple[AttackName, ...] = ("FGSM", "BI", "LLCI")
"""The adversaries of Figure 1, in its order."""

EPSILONS = (1, 5, 25, 100)
"""The strengths of Figure 1, in units of 1/255."""

FIGURE_1_IMAGES = 20
"""Images of Figure 1."""

BUDGETS = tuple(range(100, 1001, 100))
"""Iterations at which Figure 1 classifies; its text names the interval and not the end, which is Table 2's here."""

CONDITIONS: dict[str, Attack | None] = {
    condition_name(attack): attack
    for attack in (None, *(Attack(name, epsilon) for name in NAMES for epsilon in EPSILONS))
}
"""The conditions of Figure 1, and the clean images."""

_FEW = ("clean", *(condition_name(Attack(name, 5)) for name in NAMES))


@dataclass(frozen=True, kw_only=True)
class CurveSetting(ReconstructionSetting):
    """Figure 1, as a command line asks for it.

    Attributes:
        conditions: keys of ``CONDITIONS``.
    """

    conditions: tuple[str, ...]


def parse_arguments(*, description: str | None, arguments: Sequence[str] | None = None) -> CurveSetting:
    """The setting that a command line asks for.

    The device decides what the command line leaves open. A GPU gets the paper's network on 20 images. A CPU gets a
    reduced setting that takes minutes, and every report of it says so.

    Args:
        description: of the script, for ``--help``.
        arguments: instead of the process's own.

    Raises:
        SystemExit: 2, after one line on stderr, if the arguments cannot be used.
    """
    parser = command_line.parser(description, command_line.add_subject, command_line.add_reconstruction)
    add = parser.add_argument
    add("--conditions", nargs="+", choices=CONDITIONS, metavar="CONDITION", help=f"of {', '.join(CONDITIONS)}")
    given = command_line.parse(parser, _defaults, arguments)
    return CurveSetting(
        **command_line.subject_of(given),
        **command_line.reconstruction_of(given),
        conditions=tuple(name for name in CONDITIONS if name in given.conditions),
    )


def measure_figure(setting: CurveSetting, subject: Subject) -> Run:
    """Complete the stored outcomes of Figure 1 in ``setting.out``, and return them.

    See ``evaluation.measure``.

    Args:
        setting: from ``parse_arguments``.
        subject: from ``open_subject``.

    Raises:
        ValueError: an export is broken, or the backend does not run on the device.
        StoreError: the store cannot be read or written.
        ImportError: an optional package is missing.
    """
    config = subject.fitted(setting.config)
    if reduced := reduction(
        config,
        images=len(subject.chosen.indices),
        budgets=setting.budgets,
        shape=subject.shape,
        conditions=setting.conditions,
    ):
        print(*reduced, file=sys.stderr)
    reconstruction = reconstruction_of(setting, subject, config)
    return measure(
        setting,
        subject,
        conditions={name: CONDITIONS[name] for name in setting.conditions},
        defences=[undefended(), reconstruction],
        exports="figure1*.jsonl",
    )


def reduction(
    config: DIPConfig, *, images: int, budgets: Sequence[int], shape: Sequence[int], conditions: Sequence[str]
) -> list[str]:
    """A warning if a setting falls short of or differs from Figure 1's; else empty.

    Args:
        config: the network, with its number of scales.
        images: how many were classified.
        budgets: iterations.
        shape: (channels, height, width) of the images.
        conditions: keys of ``CONDITIONS``.
    """
    found = [f"{images} {'image' if images == 1 else 'images'} instead of {FIGURE_1_IMAGES}"]
    found = found if images < FIGURE_1_IMAGES else []
    attacks, published = len(set(conditions) - {"clean"}), len(CONDITIONS) - 1
    if attacks < published:
        found.append(f"{attacks} {'attack' if attacks == 1 else 'attacks'} instead of {published}")
    found += reductions(config, images=IMAGES, budgets=budgets, shape=shape)
    return reduced_setting(found)


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a command line leaves open."""
    if torch.device(given.device).type != "cpu":
        images = {"config": "paper", "budgets": BUDGETS, "batch": 20}
        return images | {"conditions": tuple(CONDITIONS), "images": FIGURE_1_IMAGES}
    # Under ten minutes on two cores, where an iteration takes about a tenth of a second.
    return {"config": "compact", "budgets": BUDGETS[:6], "conditions": _FEW, "batch": 1, "images": 2}
