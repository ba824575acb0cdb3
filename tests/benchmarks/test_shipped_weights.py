"""The shipped networks of Figure 3 are small and match their records and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dipdefense.attacks import pgd_l2
from dipdefense.classifiers import load
from dipdefense.datasets import packaged_images
from dipdefense.evaluation.provenance import digest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "weights"
NAMES = ("external", "robust", "standard")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_one_of_its_record(name: str) -> None:
    path = FOLDER / f"cifar10-{name}.pt"
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["weights"] == digest([path.read_bytes()])
    assert path.stat().st_size < 2_000_000
    assert bool(told["training"]["adversarial"]) == (name == "robust")
    assert set(told) >= {"command", "commit", "hardware", "started", "versions", "training", "test split"}


def test_the_robust_network_alone_withstands_l2_pgd() -> None:
    packaged = packaged_images("cifar10")
    correct = {}
    for name in NAMES:
        classifier = load("cifar10-cnn", weights=FOLDER / f"cifar10-{name}.pt")
        moved = pgd_l2(classifier, packaged.images, packaged.labels, epsilon=0.5, step=0.1, steps=7)
        with torch.inference_mode():
            both = [(classifier(x).argmax(dim=1) == packaged.labels).sum().item() for x in (packaged.images, moved)]
        correct[name] = both
    assert all(clean >= 14 for clean, _ in correct.values())
    assert correct["robust"][1] >= 10 > 8 > max(correct["standard"][1], correct["external"][1])
