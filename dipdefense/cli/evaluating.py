"""The images of an evaluation, and the files of its report."""

from __future__ import annotations

from pathlib import Path

from dipdefense import datasets
from dipdefense.classifiers import Classifier
from dipdefense.cli.outputs import writing
from dipdefense.cli.summary import Summary
from dipdefense.datasets import LabelledImages
from dipdefense.evaluation import AdaptiveReport
from dipdefense.evaluation.protocol import read, seeded_order
from dipdefense.files import write_atomically


def sampled(data: Path | None, classifier: Classifier, count: int, seed: int, summary: Summary) -> LabelledImages:
    """Labelled images chosen at random and preprocessed; a larger ``count`` begins with the same images.

    Args:
        data: a folder of folders named by WordNet id; None for the packaged images.
        classifier: has the resize and crop.
        count: number of images.
        seed: of the random choice.
        summary: gets the images that cannot be read.

    Raises:
        ValueError, OSError, ImportError: there are no such images, or fewer than ``count``.
    """
    if data is None:
        packaged = datasets.packaged_images("imagenet", preprocess=classifier.preprocess)
        ids = list(packaged.ids)
        places = [ids.index(name) for name in seeded_order(ids, seed)[:count]]
        found = LabelledImages(
            tuple(ids[place] for place in places), packaged.images[places], packaged.labels[places], packaged.categories
        )
    else:
        folder = datasets.image_folder(data, preprocess=classifier.preprocess)
        place = {name: index for index, name in enumerate(folder.ids)}
        readable, _, errors = read(folder, [place[name] for name in seeded_order(place, seed)[:count]])
        for name, error in errors.items():
            summary.fail(name, error.reason)
        if readable is None:
            raise ValueError(f"none of the {count} images can be read")
        found = readable
    if len(found.ids) + len(summary.failed) < count:
        raise ValueError(f"{count} images were asked for, and there are {len(found.ids)}")
    return found


def written(report: AdaptiveReport, folder: Path) -> str:
    """Write a report as Markdown and JSON, and return it as text."""
    for name, content in {"report.md": report.markdown(), "report.json": report.to_json()}.items():
        with writing(folder / name):
            write_atomically(folder / name, content)
    return str(report)
