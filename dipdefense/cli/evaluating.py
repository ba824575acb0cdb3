"""The images of an evaluation, and the files of its report."""

from __future__ import annotations

from pathlib import Path

from dipdefense.classifiers import Classifier
from dipdefense.cli.outputs import writing
from dipdefense.cli.summary import Summary
from dipdefense.datasets import LabelledImages
from dipdefense.evaluation import AdaptiveReport
from dipdefense.evaluation.protocol import read, seeded_order
from dipdefense.evaluation.subject import open_data
from dipdefense.files import write_atomically


def sampled(data: Path | None, classifier: Classifier, count: int, seed: int, summary: Summary) -> LabelledImages:
    """Labelled images, chosen at random and preprocessed.

    A larger ``count`` begins with the same images.

    Args:
        data: as of ``open_data``.
        classifier: likewise.
        count: number of images.
        seed: of the random choice.
        summary: gets the images that cannot be read.

    Raises:
        ValueError, OSError, ImportError: there are no such images, or fewer than ``count``.
    """
    _, found = open_data(data, classifier)
    if len(found.ids) < count:
        raise ValueError(f"{count} images were asked for, and there are {len(found.ids)}")
    place = {name: index for index, name in enumerate(found.ids)}
    places = [place[name] for name in seeded_order(place, seed)[:count]]
    readable, _, errors = read(found, places)
    for name, error in errors.items():
        summary.fail(name, error.reason)
    if readable is None:
        raise ValueError(f"none of the {count} images can be read")
    return readable


def written(report: AdaptiveReport, folder: Path) -> str:
    """Write a report as Markdown and JSON, and return it as text."""
    for name, content in {"report.md": report.markdown(), "report.json": report.to_json()}.items():
        with writing(folder / name):
            write_atomically(folder / name, content)
    return str(report)
