"""The predicted classes of images, as rows of text or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dipdefense.classifiers import Classifier
from dipdefense.cli.listing import Item
from dipdefense.cli.reading import class_name
from dipdefense.cli.summary import Summary
from dipdefense.purifier import DIPPurifier


@dataclass(frozen=True)
class Class:
    """A predicted class; its confidence is the softmax of its logit."""

    index: int
    name: str
    confidence: float


@dataclass(frozen=True)
class Row:
    """The classes of an image, and of its reconstruction if any, the likeliest first."""

    image: str
    seen: tuple[Class, ...]
    purified: tuple[Class, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """The row in JSON's types."""
        document: dict[str, Any] = {"image": self.image, "classes": [asdict(item) for item in self.seen]}
        if self.purified is not None:
            document["purified"] = [asdict(item) for item in self.purified]
        return document


def classified(
    items: Sequence[Item],
    images: Tensor,
    classifier: Classifier,
    purifier: DIPPurifier | None,
    seed_of: Callable[[str], int],
    summary: Summary,
    *,
    top: int,
) -> Iterator[Row]:
    """The rows of a batch.

    If it fails, as for lack of memory, each of its images is recorded as failed.
    """
    purified: list[tuple[Class, ...] | None] = [None] * len(items)
    try:
        seen = likeliest(classifier, images, top)
        if purifier is not None:
            run = purifier.reconstruct(images, budgets=(purifier.iters,), seed=[seed_of(item.name) for item in items])
            purified = [
                None if status == "diverged" else classes
                for classes, status in zip(likeliest(classifier, run.images[0], top), run.status, strict=True)
            ]
    except (RuntimeError, MemoryError) as error:
        for item in items:
            summary.fail(item.name, f"{type(error).__name__}: {error}")
        return
    for item, own, behind in zip(items, seen, purified, strict=True):
        if purifier is not None and behind is None:
            summary.fail(item.name, f"its network diverged within {purifier.iters} iterations; another --seed may not")
        yield Row(item.name, own, behind)


def likeliest(classifier: Classifier, images: Tensor, top: int) -> list[tuple[Class, ...]]:
    """The ``top`` likeliest classes of each image, in descending order of confidence."""
    with torch.inference_mode():
        confidences = classifier(images).softmax(dim=1)
    values, indices = confidences.topk(min(top, confidences.shape[1]), dim=1)
    return [
        tuple(
            Class(index, class_name(classifier, index), round(value, 6)) for value, index in zip(row, own, strict=True)
        )
        for row, own in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def columns(form: Literal["table", "csv"], *, purified: bool) -> str:
    """The line above the rows."""
    if form == "csv":
        return _csv(["image", "stage", "rank", "index", "class", "confidence"])
    return f"{'image':40} {'classifier':36}" + (f" {'behind the defence':36}" if purified else "")


def printed(row: Row, form: Literal["table", "csv"]) -> str:
    """A row as text: one line in a table, one line for each class in CSV."""
    stages = {"image": row.seen, "purified": row.purified or ()}
    if form == "csv":
        return "\n".join(
            _csv([row.image, stage, rank, item.index, item.name, item.confidence])
            for stage, classes in stages.items()
            for rank, item in enumerate(classes, 1)
        )
    cells = [", ".join(f"{item.name} {item.confidence:.2f}" for item in classes) for classes in stages.values()]
    return " ".join([f"{row.image:40}", *(f"{text:36}" for text in cells if text)]).rstrip()


def _csv(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
