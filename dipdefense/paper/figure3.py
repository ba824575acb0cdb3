"""Figure 3 of the paper: the sets of images, the command line, and how the curves are measured.

The true class's confidence against the iterations, for robust and non-robust CIFAR-10 images, two architectures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipdefense import classifiers
from dipdefense.checks import Precision
from dipdefense.classifiers import CIFAR10_CATEGORIES, Classifier
from dipdefense.config import Backend, DIPConfig
from dipdefense.datasets import LabelledImages, released_set
from dipdefense.evaluation import (
    STORE,
    Run,
    Setting,
    Subject,
    command_line,
    deep_image_prior,
    measure,
    undefended,
)
from dipdefense.evaluation.protocol import Chosen, Condition, Images, content_digest, derive_seed, seeded_order
from dipdefense.evaluation.provenance import digest
from dipdefense.evaluation.subject import InMemory, open_images
from dipdefense.paper.robust_sets import EPSILON, STEP, STEPS, TARGET_STEPS, FeaturesOf, TowardsLabels

ARCHITECTURES = {1: DIPConfig.architecture_1, 2: DIPConfig.architecture_2}
"""The networks of appendix A.3, by the number of the paper's table of them."""

SETS = ("original", "robust", "non-robust", "random-target")
"""The released sets robust_CIFAR, non_robust_CIFAR and drand_CIFAR of Ilyas et al. 2019, and the images themselves."""

RECORDED = (
    10, 20, 30, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000,
    1250, 1500, 1750, 2000, 2500, 3000, 4000, 5000,
)  # fmt: skip
"""Iterations that are classified, as far as a run goes: closest where the curves change most."""

CLASSIFIER = "cifar10-cnn"


@dataclass(frozen=True, kw_only=True)
class FigureSetting(Setting):
    """Figure 3, as a command line asks for it.

    Attributes:
        sets: of ``SETS``.
        iterations: by architecture, those of the whole fit.
        robust_network: weights of the network that makes the robust set.
        standard_network: weights of the one that makes the non-robust sets.
        released: by set, the folder of a released one.
        steps: of the feature matching.
        precision: "auto", "fp32" or "bf16".
        backend: "auto", "torch", "cudagraphs" or "triton".
    """

    sets: tuple[str, ...]
    iterations: Mapping[int, int]
    robust_network: Path
    standard_network: Path
    released: Mapping[str, Path]
    steps: int = STEPS
    precision: Precision = "auto"
    backend: Backend = "auto"


@dataclass(frozen=True)
class ImageSet:
    """One of the sets, opened.

    Attributes:
        name: of ``SETS``.
        subject: the external classifier, and the images with the labels whose confidence is measured.
        condition: what makes the set's images of the subject's; None where these are they.
        told: how the set was made, for the run's configuration.
    """

    name: str
    subject: Subject
    condition: Condition | None
    told: Mapping[str, Any]


def parse_arguments(*, description: str | None, weights: Path, arguments: Sequence[str] | None = None) -> FigureSetting:
    """The setting that a command line asks for; what it leaves open follows from the device.

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
    add("--images", type=command_line.count, help="images of each set (default: all packaged ones, else 100)")
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
        released={name: path for name, path in folders.items() if path is not None},
        steps=given.steps,
        precision=given.precision,
        backend=given.backend,
    )


def open_sets(setting: FigureSetting) -> list[ImageSet]:
    """Load the networks and the images, and choose these, whatever the classifier makes of them.

    Raises:
        ValueError: the classifier is none of CIFAR-10, a file does not fit, or there are fewer images than asked for.
        FileNotFoundError: there is no such file.
        ImportError: an optional package is missing.
    """
    classifier = classifiers.load(setting.classifier, weights=setting.weights, device=setting.device)
    if len(classifier.categories) not in (0, len(CIFAR10_CATEGORIES)):
        raise ValueError(f"Figure 3 is of CIFAR-10, whose classifiers have 10 classes; {classifier.name} has others")
    source, data = open_images(setting.data, classifier)
    own = _first(data, setting)
    made = []
    for name in setting.sets:
        folder = setting.released.get(name)
        if folder is not None:
            released = _first(InMemory(released_set(folder)), setting)
            made.append(ImageSet(name, _subject(classifier, folder.name, released), None, {"released": name}))
            continue
        condition, told = _made(name, setting, data)
        images = _relabelled(own, setting.seeds[0]) if name == "random-target" else own
        made.append(ImageSet(name, _subject(classifier, source, images), condition, told))
    return made


def measure_sets(setting: FigureSetting, sets: Sequence[ImageSet]) -> dict[tuple[int, str], Run]:
    """Complete the stored outcomes in ``setting.out``, and return a run for each architecture and set.

    Raises:
        StoreError: the store cannot be read or written.
        ValueError: an export is none, or the backend does not run on the device.
    """
    runs = {}
    for architecture, iterations in setting.iterations.items():
        for each in sets:
            subject = each.subject
            reconstruction = deep_image_prior(
                (*(budget for budget in RECORDED if budget < iterations), iterations),
                config=subject.fitted(ARCHITECTURES[architecture]()), precision=setting.precision,
                backend=setting.backend, shape=subject.shape, batch=setting.batch, device=setting.device,
            )  # fmt: skip
            print(f"architecture {architecture}, {each.name} images", file=sys.stderr)
            runs[architecture, each.name] = measure(
                setting,
                subject,
                conditions={each.name: each.condition},
                defences=[undefended(), reconstruction],
                configuration={"set": {"name": each.name, **each.told}},
                exports="figure3-*.jsonl",
            )
    return runs


def reproduce(*, description: str | None, weights: Path, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the report and print it.

    Raises:
        SystemExit: see ``command_line``: every end but the ordinary one.
    """
    from dipdefense.paper.figure3_report import write_report

    setting = parse_arguments(description=description, weights=weights, arguments=arguments)
    with command_line.script(setting.out / STORE):
        with command_line.usage():
            sets = open_sets(setting)
        runs = measure_sets(setting, sets)
        text, *others = write_report(runs, folder=setting.out)
        print(text.read_text())
        print("written:", *[text, *others], f"and {setting.out / STORE}")


def _defaults(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a command line leaves open."""
    images = {} if given.data is None else {"images": 100}
    if torch.device(given.device).type != "cpu":
        return {"iterations": [3000], "batch": 32, "steps": STEPS} | images
    return {"iterations": [500], "batch": 10, "steps": 200} | images


def _first(data: Images, setting: FigureSetting) -> LabelledImages:
    """The first images in the order of the seed, correctly classified or not."""
    place = {name: index for index, name in enumerate(data.ids)}
    order = [place[name] for name in seeded_order(place, setting.seeds[0])]
    if setting.images is not None and setting.images > len(order):
        raise ValueError(f"{setting.images} images were asked for, but there are {len(order)}; ask for fewer")
    return data.stack(order[: setting.images])


def _subject(classifier: Classifier, source: str, images: LabelledImages) -> Subject:
    labels = images.labels.tolist()
    contents = tuple(content_digest(image, label) for image, label in zip(images.images, labels, strict=True))
    chosen = Chosen(tuple(range(len(labels))), len(labels), contents)
    _, channels, height, width = images.images.shape
    return Subject(classifier, InMemory(images), source, chosen, (channels, height, width))


def _relabelled(images: LabelledImages, seed: int) -> LabelledImages:
    """The images with random other labels."""
    count = len(CIFAR10_CATEGORIES)
    moves = [1 + derive_seed(seed, "target", name) % (count - 1) for name in images.ids]
    return replace(images, labels=(images.labels + torch.tensor(moves)) % count)


def _made(name: str, setting: FigureSetting, data: Images) -> tuple[Condition | None, Mapping[str, Any]]:
    """The condition that makes a set, and how, in types that JSON has."""
    if name == "original":
        return None, {}
    weights = setting.robust_network if name == "robust" else setting.standard_network
    network = classifiers.load(CLASSIFIER, weights=weights, device=setting.device)
    told = {"network": digest(value.cpu().numpy().tobytes() for value in network.state_dict().values()), "step": STEP}
    if name == "random-target":
        return TowardsLabels(_fast(network)), {**told, "steps": TARGET_STEPS, "epsilon": EPSILON}
    return FeaturesOf(_fast(network), data, steps=setting.steps), {**told, "steps": setting.steps}


def _fast(network: nn.Module) -> nn.Module:
    # A third of the time of the feature matching on a CPU.
    return network.to(memory_format=torch.channels_last)
