"""Section 6 of the paper: the defence with one change of its network at a time.

Measured here, on the same images; ``architecture_outcomes`` holds the networks against each other,
``architecture_claims`` decides what the section says, and ``architecture_report`` and ``architecture_plots`` show it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from dipdefense.checks import check_backend
from dipdefense.config import Backend, DIPConfig
from dipdefense.evaluation import (
    ReconstructionSetting,
    Run,
    Subject,
    command_line,
    measure,
    undefended,
)
from dipdefense.evaluation.measurement import reconstruction_of
from dipdefense.evaluation.report import reduced_setting
from dipdefense.paper.published import reductions
from dipdefense.paper.tables import CONDITIONS

ORIGINAL = "original"
"""The name of the network that every variant is held against."""

BUDGETS = tuple(range(50, 1001, 50))
"""Iterations at which outputs are classified: close enough to see where a variant's peak lies."""


class Variant(NamedTuple):
    """One change of the network.

    Attributes:
        title: in reports.
        changes: from the original's configuration to the fields that change, with their new values.
    """

    title: str
    changes: Callable[[DIPConfig], Mapping[str, Any]]


def _fixed(title: str, **changes: Any) -> Variant:
    return Variant(title, lambda _: changes)


VARIANTS: dict[str, Variant] = {
    ORIGINAL: _fixed("original"),
    "no-skips": _fixed("no skip connections", skip_channels=0),
    "1-scale": _fixed("1 scale", scales=1),
    "2-scales": _fixed("2 scales", scales=2),
    "3-scales": _fixed("3 scales", scales=3),
    "4-scales": _fixed("4 scales", scales=4),
    "5-scales": _fixed("5 scales", scales=5),
    "6-scales": _fixed("6 scales", scales=6),
    "skips-16": _fixed("16 skip channels", skip_channels=16),
    "skips-128": _fixed("128 skip channels", skip_channels=128),
    "half-width": Variant("half the channels", lambda config: {"channels": config.channels // 2}),
    "double-width": Variant("twice the channels", lambda config: {"channels": 2 * config.channels}),
    "nearest": _fixed("nearest upsampling", upsampling="nearest"),
    "average": _fixed("average pooling", downsampling="average"),
    "max": _fixed("max pooling", downsampling="max"),
    "lanczos": _fixed("Lanczos filter", downsampling="lanczos2"),
    "relu": _fixed("ReLU", leaky_slope=0.0),
    "swish": _fixed("Swish", activation="swish"),
    "elu": _fixed("ELU", activation="elu"),
    "linear": _fixed("no activation", activation="none"),
    "no-pointwise": _fixed("no 1×1 layers", pointwise=False),
    "kernel-5": _fixed("kernels of 5×5", kernel_size=5),
    "input-3": _fixed("3 input channels", input_channels=3),
    "input-128": _fixed("128 input channels", input_channels=128),
    "no-noise": _fixed("no noise per iteration", noise_std=0.0),
}
"""The variants that are measured, by the names that the command line has for them."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureSetting(ReconstructionSetting):
    """The experiment, as a command line asks for it.

    Attributes:
        config: the original network.
        variants: of ``VARIANTS``; None for all that fit the images.
        conditions: keys of ``CONDITIONS``.
    """

    variants: tuple[str, ...] | None = None
    budgets: tuple[int, ...] = BUDGETS
    conditions: tuple[str, ...] = ("clean", "fgsm-5")


def networks(
    config: DIPConfig, shape: Sequence[int], *, names: Sequence[str] | None = None, backend: Backend = "auto"
) -> dict[str, DIPConfig]:
    """The networks to measure by the variants' names, the original first.

    Each has its number of scales. A variant that is the original itself, such as five scales where it has five, is left
    out.

    Args:
        config: the original's.
        shape: (channels, height, width) of the images.
        names: of ``VARIANTS``; None for all that fit the images and that the backend can fit.
        backend: of the reconstruction.

    Raises:
        ValueError: the images are too small for the original or for a variant that was named, or the backend cannot fit
            it.
    """
    original = replace(config, scales=config.scales_for(*shape[1:]))
    check_backend(backend, config=original)
    found = {ORIGINAL: original}
    for name, variant in VARIANTS.items():
        if names is not None and name not in names:
            continue
        try:
            varied = replace(original, **variant.changes(original))
            varied.scales_for(*shape[1:])
            check_backend(backend, config=varied)
        except ValueError as error:
            if names is None:
                continue
            raise ValueError(f"the variant {name}: {error}") from error
        if varied not in found.values():
            found[name] = varied
    return found


def parse_arguments(*, description: str | None, arguments: Sequence[str] | None = None) -> ArchitectureSetting:
    """The setting that a command line asks for.

    The device and the data decide what the command line leaves open.

    Args:
        description: of the script, for ``--help``.
        arguments: instead of the process's own.

    Raises:
        SystemExit: 2, after one line on stderr, if the arguments cannot be used.
    """
    parser = command_line.parser(description, command_line.add_subject, command_line.add_reconstruction)
    add = parser.add_argument
    add("--conditions", nargs="+", choices=CONDITIONS, metavar="CONDITION", help=f"of {', '.join(CONDITIONS)}")
    others = [name for name in VARIANTS if name != ORIGINAL]
    add("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help=f"beside the original: {', '.join(others)}")
    given = command_line.parse(parser, _defaults, arguments)
    return ArchitectureSetting(
        **command_line.subject_of(given),
        **command_line.reconstruction_of(given),
        variants=None if given.variants is None else tuple(given.variants),
        conditions=tuple(name for name in CONDITIONS if name in given.conditions),
    )


def measure_variants(setting: ArchitectureSetting, subject: Subject) -> dict[str, Run]:
    """Complete every variant's stored outcomes in ``setting.out``, and return them.

    The variants are measured one after the other. Each is a run of its own in the one store, and the original's is that
    of a table with its settings. The classifier alone is measured beside the original.

    Args:
        setting: from ``parse_arguments``.
        subject: from ``open_subject``.

    Raises:
        ValueError: see ``networks``; or an export is broken.
        StoreError: the store cannot be read or written.
    """
    configs = networks(setting.config, subject.shape, names=setting.variants, backend=setting.backend)
    images = len(subject.chosen.indices)
    if told := reduced(configs, images=images, budgets=setting.budgets, shape=subject.shape):
        print(told, file=sys.stderr)
    runs = {}
    for place, (name, config) in enumerate(configs.items(), start=1):
        print(f"{place} of {len(configs)}: {VARIANTS[name].title}", file=sys.stderr)
        reconstruction = reconstruction_of(setting, subject, config)
        runs[name] = measure(
            setting,
            subject,
            conditions={condition: CONDITIONS[condition] for condition in setting.conditions},
            defences=[undefended(), reconstruction] if name == ORIGINAL else [reconstruction],
            exports=f"{record_name(name)}.jsonl",
        )
    return runs


def record_name(variant: str) -> str:
    """The name of a variant's exported records, without its ending."""
    return f"architecture-{variant}"


def reduced(configs: Mapping[str, DIPConfig], *, images: int, budgets: Sequence[int], shape: Sequence[int]) -> str:
    """A warning if a setting is less than the tables' or lacks variants; else empty.

    Section 6 does not say which images and attacks it is about; the tables' setting stands in for it.

    Args:
        configs: from ``networks``.
        images: how many there are.
        budgets: iterations.
        shape: (channels, height, width) of the images.
    """
    told = reductions(configs[ORIGINAL], images=images, budgets=budgets, shape=shape)
    whole = networks(configs[ORIGINAL], shape)
    told += [f"{len(configs)} networks of {len(whole)}"] if len(configs) < len(whole) else []
    return " ".join(reduced_setting(told))


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a command line leaves open."""
    both = {"conditions": ("clean", "fgsm-5")}
    if torch.device(given.device).type != "cpu":
        return both | {"config": "paper", "budgets": BUDGETS, "batch": 32, "images": 20 if given.data is None else 100}
    # Under ten minutes on two cores, where an iteration of the original takes about a tenth of a second.
    variants = None if given.data else (ORIGINAL, "no-skips", "1-scale")
    return both | {"config": "compact", "budgets": BUDGETS[:6], "variants": variants, "batch": 1, "images": 2}
