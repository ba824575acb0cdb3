"""``dipdefense classify`` and ``attack``, on the packaged images."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dipdefense import DIPPurifier, classifiers
from dipdefense.attacks import Attack
from dipdefense.cli.command import command
from dipdefense.files import read_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images of known classes, and a file that is none."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    data = Path(importlib.util.find_spec("foolbox").origin).parent / "data"
    for number, name in enumerate(sorted(data.glob("imagenet_*.jpg"))[:3]):
        shutil.copy(name, folder / ("deep" if number == 2 else "") / name.name)
    (folder / "broken.png").write_bytes(b"x")
    return folder


def invoke(*words: object) -> Result:
    return CliRunner().invoke(command, [*map(str, words), "--device", "cpu"])


def test_classes_and_confidences(images: Path) -> None:
    result = invoke("classify", images, "--top", 2, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["failed"].keys() == {"broken.png"}
    assert [row["image"] for row in told["images"]] == [
        "deep/imagenet_02_438.jpg", "imagenet_00_243.jpg", "imagenet_01_559.jpg",
    ]  # fmt: skip
    classifier = classifiers.load("efficientnet-lite0")
    with Image.open(images / "imagenet_00_243.jpg") as picture, torch.inference_mode():
        expected = classifier(classifier.preprocess(picture)[None]).softmax(dim=1)[0].topk(2)
    found = told["images"][1]["classes"]
    assert [item["index"] for item in found] == expected.indices.tolist()
    assert [item["name"] for item in found] == [classifier.categories[index] for index in expected.indices]
    assert torch.allclose(torch.tensor([item["confidence"] for item in found]), expected.values, atol=1e-4)


def test_the_same_as_a_table_and_as_csv(images: Path) -> None:
    told = json.loads(invoke("classify", images, "--json").stdout)["images"]
    table = invoke("classify", images).stdout
    rows = list(csv.DictReader(io.StringIO(invoke("classify", images, "--form", "csv").stdout)))
    for row, line, shown in zip(told, rows, table.splitlines()[1:], strict=True):
        best = row["classes"][0]
        assert (line["image"], line["class"], float(line["confidence"])) == (
            row["image"], best["name"], best["confidence"],
        )  # fmt: skip
        assert shown.split() == f"{row['image']} {best['name']} {best['confidence']:.2f}".split()


def test_behind_the_defence(images: Path) -> None:
    words = ("classify", images, "--purify", 1, "--config", "architecture-2", "--json")
    first, second = (json.loads(invoke(*words, *more).stdout)["images"] for more in ((), ("--batch-size", 1)))
    for row, again in zip(first, second, strict=True):
        assert row["purified"][0] != row["classes"][0]
        assert row["purified"][0]["confidence"] == pytest.approx(again["purified"][0]["confidence"], abs=1e-3)


def test_networks_that_do_not_fit_the_crop_are_refused_before_any_work(images: Path, tmp_path: Path) -> None:
    torch.save(classifiers.untrained_cifar10().network.state_dict(), tmp_path / "weights.pt")
    small = ("--classifier", "cifar10-cnn", "--weights", tmp_path / "weights.pt")
    result = invoke("classify", images, *small, "--purify", 1, "--config", "paper")
    assert (result.exit_code, "too small for 5 scales" in result.output) == (2, True)
    assert invoke("classify", images, *small, "--config", "paper").exit_code == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError()], ids=["device", "host"])
@pytest.mark.parametrize("subcommand", ["classify", "attack"])
def test_a_batch_that_memory_does_not_suffice_for_is_named(
    images: Path, tmp_path: Path, monkeypatch, subcommand: str, error: Exception
) -> None:
    inner = classifiers.Classifier.forward

    def fails(self, batch):
        if len(batch) > 1:
            raise error
        return inner(self, batch)

    monkeypatch.setattr(classifiers.Classifier, "forward", fails)
    words = [subcommand, images, *([tmp_path / "out"] if subcommand == "attack" else [])]
    result = invoke(*words, "--batch-size", 2, "--json")  # the broken file shares a batch with the first image
    told = json.loads(result.stdout)
    assert (result.exit_code, len(told["failed"])) == (1, 3)
    assert type(error).__name__ in told["failed"]["imagenet_01_559.jpg"]


def test_a_diverging_reconstruction_is_named_and_has_no_classes(images: Path, monkeypatch) -> None:
    inner = DIPPurifier.reconstruct

    def diverges(self, images, **given):
        run = inner(self, images, **given)
        run.images[:, 0] = torch.nan
        return dataclasses.replace(run, status=("diverged", *run.status[1:]))

    monkeypatch.setattr(DIPPurifier, "reconstruct", diverges)
    result = invoke("classify", images, "--purify", 1, "--config", "architecture-2", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["failed"].keys()) == (1, {"broken.png", "deep/imagenet_02_438.jpg"})
    assert "its network diverged within 1 iterations" in told["failed"]["deep/imagenet_02_438.jpg"]
    assert ["purified" in row for row in told["images"]] == [False, True, True]


def test_an_attack_is_written_as_the_attack_made_it(images: Path, tmp_path: Path) -> None:
    result = invoke("attack", images, tmp_path / "out", "--epsilon", 5, "--json")
    assert result.exit_code == 1
    assert "defence-unaware" in result.stderr
    told = json.loads(result.stdout)
    assert (told["done"], told["setting"]) == (3, "defence-unaware, rounded to 8 bits")
    changed = told["classes"]["imagenet_00_243.jpg"]
    assert changed["before"]["index"] == 243 != changed["after"]["index"]

    classifier = classifiers.load("efficientnet-lite0")
    with Image.open(images / "imagenet_00_243.jpg") as picture:
        clean = classifier.preprocess(picture)[None]
    expected = Attack("FGSM", 5, rounded=True)(classifier, clean, torch.tensor([243]))
    written = read_image(tmp_path / "out" / "imagenet_00_243.png").pixels
    assert (written - expected[0]).abs().max() < 1e-6
    # What is told of the attacked image is what its file is classified as.
    again = json.loads(invoke("classify", tmp_path / "out" / "imagenet_00_243.png", "--json").stdout)
    assert again["images"][0]["classes"][0]["confidence"] == pytest.approx(changed["after"]["confidence"], abs=1e-4)
    assert json.loads(invoke("attack", images, tmp_path / "out", "--json").stdout)["kept"] == 3


def test_another_attack_into_the_same_folder_is_refused(images: Path, tmp_path: Path) -> None:
    invoke("attack", images, tmp_path / "out", "--attack", "noise")
    before = (tmp_path / "out" / "imagenet_00_243.png").read_bytes()
    result = invoke("attack", images, tmp_path / "out", "--attack", "noise", "--epsilon", 9)
    assert (result.exit_code, "in the way" in result.output or "--overwrite" in result.output) == (2, True)
    assert (tmp_path / "out" / "imagenet_00_243.png").read_bytes() == before


def test_the_label_is_the_attacks_true_class(images: Path, tmp_path: Path) -> None:
    source = images / "imagenet_00_243.jpg"
    told = [
        json.loads(invoke("attack", source, tmp_path / str(label), "--label", label, "--json").stdout)["classes"]
        for label in (243, 559)
    ]
    confidences = [classes[source.name]["after"]["confidence"] for classes in told]
    assert confidences[0] != confidences[1]
