"""Adversarial versions of image files, written as 8-bit PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipdefense import __version__
from dipdefense.attacks import Attack
from dipdefense.classifiers import Classifier
from dipdefense.cli import reading
from dipdefense.cli.classifying import Class, likeliest
from dipdefense.cli.jobs import digest_of
from dipdefense.cli.listing import Item
from dipdefense.cli.network import device_named
from dipdefense.cli.outputs import Record, refuse_to_replace, run, state_of, writing
from dipdefense.cli.progress import Progress, say
from dipdefense.cli.summary import Summary
from dipdefense.files import UnreadableImage, read_bytes, write_image
from dipdefense.seeds import derive_seed


@dataclass(frozen=True)
class Campaign:
    """The attack of one command line; ``outputs`` has one file for each of ``items``."""

    attack: Attack
    items: Sequence[Item]
    outputs: Sequence[Path]
    lock: Path | None
    overwrite: bool
    classifier_name: str
    weights: Path | None
    device: str | None
    label: int | None
    seed: int
    batch_size: int


def craft(asked: Campaign) -> tuple[Summary, dict[str, dict[str, Any]]]:
    """Attack the images that have no output yet.

    Returns:
        The outcome of every image, and by name the classes before and after the attack of those that were attacked.

    Raises:
        TypeError, ValueError, OSError, ImportError: the classifier cannot be loaded, the label is none of its classes,
            or other files are in the way.
        Stopped: another run is writing into the same folder.
    """
    device = device_named(asked.device)
    classifier = reading.load(asked.classifier_name, asked.weights, device)
    summary, changed = Summary(len(asked.items)), dict[str, dict[str, Any]]()
    with run(summary, asked.outputs, asked.lock):
        todo = _plan(asked, summary)
        summary.begun = True
        places = {item.name: (path, record) for item, path, record in todo}
        with Progress(len(todo)) as progress:
            for batch, images in reading.batches(
                [item for item, _, _ in todo], classifier, summary, size=asked.batch_size, device=device
            ):
                changed |= _attacked(asked, classifier, batch, images, summary, places)
                progress.advance(len(batch))
    return summary, changed


def _attacked(
    asked: Campaign,
    classifier: Classifier,
    items: Sequence[Item],
    images: Tensor,
    summary: Summary,
    places: Mapping[str, tuple[Path, Record]],
) -> dict[str, dict[str, Any]]:
    """Attack a batch and write it; return the classes before and after, by name."""
    seeds = [derive_seed(asked.seed, "attack", item.name) for item in items]
    try:
        before = likeliest(classifier, images, 1)
        labels = torch.tensor([own[0].index if asked.label is None else asked.label for own in before])
        adversarial = asked.attack(classifier, images, labels.to(images.device), batch_size=len(items), seed=seeds)
        after = likeliest(classifier, adversarial, 1)
    except (RuntimeError, MemoryError) as error:
        for item in items:
            summary.fail(item.name, f"{type(error).__name__}: {error}")
        return {}
    changed = {}
    for item, image, (first,), (last,) in zip(items, adversarial, before, after, strict=True):
        path, record = places[item.name]
        try:
            with writing(path):
                write_image(path, image, text=record.metadata(dipdefense=__version__))
        except OSError as error:
            summary.fail(item.name, f"{path} could not be written: {error.strerror or error}")
            continue
        summary.done += 1
        changed[item.name] = {"before": asdict(first), "after": asdict(last)}
        say(f"{item.name}: {_shown(first)} -> {_shown(last)}")
    return changed


def _plan(asked: Campaign, summary: Summary) -> list[tuple[Item, Path, Record]]:
    """The images that have no output yet, each with its output's path and record."""
    settings = {
        "command": "attack", "attack": str(asked.attack), "classifier": asked.classifier_name,
        "weights": None if asked.weights is None else digest_of(asked.weights.read_bytes()),
        "label": asked.label, "seed": asked.seed,
    }  # fmt: skip
    todo, in_the_way = [], []
    for item, path in zip(asked.items, asked.outputs, strict=True):
        try:
            record = Record(settings, digest_of(read_bytes(item.path)))
        except UnreadableImage as error:
            summary.fail(item.name, error.reason)
            continue
        state, reason = state_of(path, record)
        if state == "done":
            summary.kept += 1
            continue
        if state in ("other settings", "foreign"):
            in_the_way.append(f"{path} exists: {reason}")
        todo.append((item, path, record))
    if not asked.overwrite:
        refuse_to_replace(in_the_way)
    return todo


def _shown(seen: Class) -> str:
    return f"{seen.name} {seen.confidence:.2f}"
