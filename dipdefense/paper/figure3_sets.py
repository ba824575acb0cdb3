"""The image sets of Figure 3, released or made here, and how they are measured."""

from __future__ import annotations

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
from dipdefense.datasets import LabelledImages, cifar10, packaged_images, released_set
from dipdefense.evaluation import (
    Run,
    Setting,
    Subject,
    deep_image_prior,
    measure,
    undefended,
)
from dipdefense.evaluation.protocol import Chosen, Condition, Images, content_digest, derive_seed, seeded_order
from dipdefense.evaluation.provenance import weights_digest
from dipdefense.evaluation.report import reduced_setting
from dipdefense.evaluation.subject import InMemory
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

IMAGES, ITERATIONS = 100, {1: 1000, 2: 3000}
"""A measurement with less is a reduced one. The paper states neither its images nor the end of its curves."""


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
        backend: "auto", "torch", "native", "cudagraphs" or "triton".
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

    def made(self, count: int, *, batch: int) -> LabelledImages:
        """The set's first images, on the CPU."""
        found = self.subject.data.stack(self.subject.chosen.indices[:count])
        if self.condition is None:
            return found
        classifier = self.subject.classifier
        device = next(classifier.parameters()).device
        images = self.condition(classifier, found.images.to(device), found.labels.to(device), batch_size=batch, seed=())
        return replace(found, images=images.cpu())


def open_sets(setting: FigureSetting) -> list[ImageSet]:
    """Load the networks and choose the images, correctly classified or not.

    Raises:
        ValueError: the classifier is none of CIFAR-10, a file does not fit, or there are fewer images than asked for.
        FileNotFoundError: there is no such file.
        ImportError: an optional package is missing.
    """
    classifier = classifiers.load(setting.classifier, weights=setting.weights, device=setting.device)
    if len(classifier.categories) not in (0, len(CIFAR10_CATEGORIES)):
        raise ValueError(f"Figure 3 is of CIFAR-10, whose classifiers have 10 classes; {classifier.name} has others")
    made = {}
    for name, folder in setting.released.items():
        images = _first(InMemory(released_set(folder)), setting.images or IMAGES, setting.seeds[0])
        made[name] = ImageSet(name, _subject(classifier, folder.name, images), None, {"released": name})
    # Released sets need no other images.
    if own := [name for name in setting.sets if name not in setting.released]:
        source, data = _images(setting.data)
        images = _first(data, setting.images or (IMAGES if setting.data else len(data.ids)), setting.seeds[0])
        for name in own:
            condition, told = _made(name, setting, data)
            labelled = _relabelled(images, setting.seeds[0]) if name == "random-target" else images
            made[name] = ImageSet(name, _subject(classifier, source, labelled), condition, told)
    return [made[name] for name in setting.sets]


def reduction(told: Mapping[str, Mapping[str, Any]], *, images: int, iterations: Mapping[int, int]) -> list[str]:
    """A warning if a setting falls short of or differs from the paper's; else empty.

    Args:
        told: by set, how it was made.
        images: of each set.
        iterations: by architecture.

    Example:
        >>> reduction({"robust": {"released": "robust"}}, images=20, iterations={1: 1000})
        ["REDUCED SETTING, NOT THE PAPER'S: 20 images instead of 100."]
    """
    found = [f"{images} images instead of {IMAGES}"] if images < IMAGES else []
    for architecture, last in iterations.items():
        if last < ITERATIONS[architecture]:
            found.append(f"{last} iterations of architecture {architecture} instead of {ITERATIONS[architecture]}")
    made = {name: how for name, how in told.items() if name != "original" and "released" not in how}
    if made:
        found.append(f"{', '.join(made)} images made here with small networks, not the released ones")
    steps = min((how["steps"] for name, how in made.items() if name != "random-target"), default=STEPS)
    found += [f"{steps} steps of the feature matching instead of {STEPS}"] if steps < STEPS else []
    return reduced_setting(found)


def measure_sets(setting: FigureSetting, sets: Sequence[ImageSet]) -> dict[tuple[int, str], Run]:
    """Complete the stored outcomes in ``setting.out``, and return the runs.

    There is one for each architecture and set.

    Raises:
        StoreError: the store cannot be read or written.
        ValueError: an export is broken, or the backend does not run on the device.
    """
    told = {each.name: each.told for each in sets}
    images = min(len(each.subject.ids) for each in sets)
    if reduced := reduction(told, images=images, iterations=setting.iterations):
        print(*reduced, file=sys.stderr)
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


def _images(path: Path | None) -> tuple[str, Images]:
    """CIFAR-10's name in reports, and its images of 32×32 pixels.

    They keep this size even for a classifier that would resize them.
    """
    if path is None:
        return "packaged CIFAR-10 images", InMemory(packaged_images("cifar10"))
    return path.resolve().name, cifar10(path)


def _first(data: Images, count: int, seed: int) -> LabelledImages:
    """The first images in the order of the seed, correctly classified or not."""
    place = {name: index for index, name in enumerate(data.ids)}
    if count > len(place):
        raise ValueError(f"{count} images were asked for, but there are {len(place)}; ask for fewer, or give more data")
    return data.stack([place[name] for name in seeded_order(place, seed)[:count]])


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
    told = {"network": weights_digest(network), "step": STEP}
    if name == "random-target":
        return TowardsLabels(_fast(network), steps=TARGET_STEPS), {**told, "steps": TARGET_STEPS, "epsilon": EPSILON}
    return FeaturesOf(_fast(network), data, setting.seeds[0], setting.steps), {**told, "steps": setting.steps}


def _fast(network: nn.Module) -> nn.Module:
    # A third of the time of the feature matching on a CPU.
    return network.to(memory_format=torch.channels_last)
