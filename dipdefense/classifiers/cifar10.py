"""A small classifier of CIFAR-10, trained by ``benchmarks/train_cifar10.py``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dipdefense.classifiers.model import Classifier, Preprocess
from dipdefense.classifiers.weights import load_state, read_state

CIFAR10_CATEGORIES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of the 10 CIFAR-10 classes, in class order."""


def untrained_cifar10() -> Classifier:
    """The classifier "cifar10-cnn" before training.

    It has six convolutions and 0.6 million parameters.
    """

    def block(inputs: int, outputs: int, *, pool: bool) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        return [*layers, nn.MaxPool2d(2)] if pool else layers

    network = nn.Sequential(
        *block(3, 32, pool=True),
        *block(32, 64, pool=False),
        *block(64, 64, pool=True),
        *block(64, 128, pool=False),
        *block(128, 128, pool=True),
        *block(128, 256, pool=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, len(CIFAR10_CATEGORIES)),
    )
    return Classifier(
        network,
        name="small CIFAR-10 CNN",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        preprocess=Preprocess(resize=32, crop=32),
        categories=CIFAR10_CATEGORIES,
    )


def load_cifar10(weights: Path | None) -> Classifier:
    """The classifier "cifar10-cnn" with trained weights.

    Raises:
        ValueError: no file is given, or its weights do not fit.
    """
    if weights is None:
        raise ValueError(
            "cifar10-cnn comes without weights: make them with python benchmarks/train_cifar10.py --data CIFAR10.zip, "
            "then give weights=PATH"
        )
    classifier = untrained_cifar10()
    load_state(classifier.network, read_state(weights), weights)
    return classifier
