"""Tiny images, networks and runs, and made-up records, to measure and report on."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipdefense import DIPConfig
from dipdefense.classifiers import Classifier, Preprocess
from dipdefense.datasets import LabelledImages
from dipdefense.evaluation import Defence, Record, Run, Setting, Store, Subject, measure
from dipdefense.evaluation.defences import deep_image_prior, randomisation, undefended
from dipdefense.evaluation.protocol import attack_named, choose
from dipdefense.evaluation.runner import Experiment, run
from dipdefense.files import UnreadableImage
from dipdefense.paper.published import printed_number
from dipdefense.paper.tables import TABLES

CONFIG = DIPConfig(scales=2, channels=4, skip_channels=2, input_channels=4)
CONFIGURATION = {
    "classifier": "tiny",
    "weights": "0123",
    "data": "noise",
    "classes": None,
    "selection seed": 0,
    "dip": CONFIG.to_json(),
    "precision": "fp32",
    "device": "cpu",
    "input": [3, 32, 32],
    "library": "0.1.0",
}


class TinyImages:
    """Random images, which the tiny classifier classifies correctly, but every third."""

    def __init__(self, classifier: nn.Module, count: int) -> None:
        self.pixels = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        # Contrasts of their own, or all would look alike to a network that averages over the image.
        self.pixels *= torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            predictions = classifier(self.pixels).argmax(dim=1).tolist()
        self.labels = [(p + 1) % 5 if index % 3 == 2 else p for index, p in enumerate(predictions)]
        self.ids = [f"class{label}/{index}.png" for index, label in enumerate(self.labels)]

    def stack(self, indices: Sequence[int]) -> LabelledImages:
        chosen = list(indices)
        labels = torch.tensor([self.labels[index] for index in chosen])
        return LabelledImages(tuple(self.ids[index] for index in chosen), self.pixels[chosen], labels, ())


def tiny_classifier() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with torch.no_grad():
        layers[-1].weight.mul_(20)
        layers[-1].bias.sub_(layers(torch.rand(64, 3, 1, 1).mul(0.5).expand(-1, -1, 32, 32)).mean(dim=0))
    return layers.eval()


def tiny_defences(budgets: tuple[int, ...] = (2, 4)) -> list[Defence]:
    return [undefended(), randomisation((1, 2)), deep_image_prior(budgets, config=CONFIG)]


def tiny_run(
    store: Store,
    *,
    images: int = 5,
    conditions: Sequence[str] = ("clean", "fgsm-10", "noise-10"),
    defences: Sequence[Defence] | None = None,
    seeds: Sequence[int] = (0,),
    batch: int = 2,
    configuration: dict = CONFIGURATION,
) -> Run:
    classifier = tiny_classifier()
    data = TinyImages(classifier, 60)
    done = run(
        store,
        configuration,
        {"commit": "c0ffee"},
        Experiment(
            data=data,
            chosen=choose(data, classifier, images=images),
            classifier=classifier,
            conditions={name: attack_named(name) for name in conditions},
            defences=tiny_defences() if defences is None else defences,
            seeds=seeds,
            batch=batch,
        ),
    )
    return store.load(done.key)


def timeless(stored: Run) -> Run:
    """All but the circumstances, which differ from run to run."""
    records = tuple(dataclasses.replace(record, seconds=0.0, session=1) for record in stored.records)
    return Run(stored.configuration, records, {1: {"commit": "c0ffee"}})


class Files(TinyImages):
    """The tiny images, some of which cannot be read, are gone, or have other pixels."""

    def __init__(self, classifier: nn.Module, count: int = 60, *, without: Sequence[str] = ()) -> None:
        super().__init__(classifier, count)
        self.bad: set[str] = set()
        left = [index for index, name in enumerate(self.ids) if name not in without]
        self.pixels = self.pixels[left]
        self.labels, self.ids = [self.labels[i] for i in left], [self.ids[i] for i in left]

    def stack(self, indices: Sequence[int]) -> LabelledImages:
        for index in indices:
            if self.ids[index] in self.bad:
                raise UnreadableImage(f"/data/{self.ids[index]}", "truncated")
        return super().stack(indices)


def tiny_subject(data: Files | None = None, *, images: int | None = 5) -> Subject:
    network = tiny_classifier()
    nothing = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "preprocess": Preprocess(32, 32)}
    classifier = Classifier(network, name="tiny", **nothing)
    data = Files(classifier) if data is None else data
    return Subject(classifier, data, "noise", choose(data, classifier, images=images), (3, 32, 32))


def tiny_measure(folder: Path, subject: Subject | None = None, **changes: Any) -> Run:
    asked: dict[str, Any] = {"defences": tiny_defences(), "conditions": ("clean", "noise-10"), "batch": 2} | changes
    conditions = {name: attack_named(name) for name in asked["conditions"]}
    setting = Setting(out=folder, batch=asked["batch"], seeds=asked.get("seeds", (0,)), progress=False)
    subject = subject or tiny_subject()
    return measure(setting, subject, conditions=conditions, defences=asked["defences"])


def record(image: str = "a", **changes: object) -> Record:
    values = {
        "condition": "clean",
        "defence": "dip",
        "budget": 2,
        "seed": 0,
        "position": 0,
        "label": 3,
        "prediction": 3,
        "confidence": 0.1 + 0.2,
        "loss": 1e-3,
        "status": "ok",
        "seconds": 0.25,
    }
    return Record(image=image, **(values | changes))


CIRCUMSTANCES = {"command": "python benchmarks/table2.py", "commit": "c0ffee", "hardware": "abacus", "torch": "2.15"}


def made_up(
    *,
    images: int = 40,
    budgets: Sequence[int] = (500, 750, 1000),
    seeds: Sequence[int] = (0,),
    conditions: Sequence[str] = TABLES[2],
    config: DIPConfig | None = None,
    classifier: str = "efficientnet-lite0",
    shape: Sequence[int] = (3, 224, 224),
) -> Run:
    """Records whose accuracies are near the published ones."""
    chance = random.Random(0)
    columns = [("none", 0), ("randomisation", 1), ("randomisation", 30), ("low-pass", 2), ("low-pass", 3)]
    columns += [("dip", budget) for budget in budgets]
    records = []
    for condition in conditions:
        for defence, budget in columns:
            theirs = printed_number(condition, defence, budget)
            share = theirs.percent / 100 if theirs else 0.95 if defence == "none" else 0.5
            for seed in seeds[:1] if defence in ("none", "low-pass") else seeds:
                for position in range(images):
                    prediction = 3 if chance.random() < share else 4
                    records.append(
                        Record(
                            condition=condition,
                            defence=defence,
                            budget=budget,
                            seed=seed,
                            position=position,
                            image=f"{position}.JPEG",
                            label=3,
                            prediction=prediction,
                            confidence=0.5,
                            loss=None,
                            status="ok",
                            seconds=0.01 * (budget + 1),
                            session=1,
                        )
                    )
    dip = (config or DIPConfig.paper()).to_json()
    configuration = CONFIGURATION | {"classifier": classifier, "dip": dip, "input": list(shape)}
    return Run(json.loads(json.dumps(configuration)), tuple(records), {1: CIRCUMSTANCES})
