"""The CIFAR-10 training script on a few images: it learns, and resumes if killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dipdefense.classifiers import CIFAR10_CATEGORIES
from dipdefense.evaluation.provenance import digest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import train_cifar10


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A hue for each class."""
    for split in ("train", "test"):
        for index, category in enumerate(CIFAR10_CATEGORIES):
            folder = tmp_path / "data" / split / category
            folder.mkdir(parents=True)
            for number in range(13 if split == "train" else 1):
                Image.new("HSV", (32, 32), (25 * index, 200, 150 + number)).convert("RGB").save(
                    folder / f"{number}.png"
                )
    return tmp_path / "data"


def train(
    monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *options: str, epochs: int
) -> dict[str, torch.Tensor]:
    given = [*f"train_cifar10.py --data {data} --out {out} --epochs {epochs}".split(), *options]
    monkeypatch.setattr(sys, "argv", given)
    train_cifar10.main()
    return torch.load(out, weights_only=True)


def test_it_learns_and_a_killed_training_resumes(monkeypatch, data, tmp_path, capsys) -> None:
    monkeypatch.setattr(train_cifar10, "BATCH", 13)
    whole = train(monkeypatch, data, tmp_path / "whole.pt", epochs=8)
    share = float(capsys.readouterr().out.split()[1])
    assert share >= 50

    real, saved = torch.save, []

    def dies_in_the_sixth_epoch(state: object, path: Path) -> None:
        saved.append(path)
        if len(saved) == 6:
            raise KeyboardInterrupt
        real(state, path)

    monkeypatch.setattr(torch, "save", dies_in_the_sixth_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, data, tmp_path / "killed.pt", epochs=8)
    monkeypatch.setattr(torch, "save", real)
    with pytest.raises(SystemExit, match="belongs to another training"):
        train(monkeypatch, data, tmp_path / "killed.pt", epochs=7)
    resumed = train(monkeypatch, data, tmp_path / "killed.pt", epochs=8)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["killed.json", "killed.pt", "whole.json", "whole.pt"]


def test_adversarial_fine_tuning_begins_with_the_given_weights_and_is_recorded(monkeypatch, data, tmp_path) -> None:
    monkeypatch.setattr(train_cifar10, "STEPS", 2)
    first = train(monkeypatch, data, tmp_path / "new" / "first.pt", epochs=1)
    seen = []
    real = train_cifar10.pgd_l2

    def attack(classifier, images, labels, *, epsilon, step, steps, generator=None):
        moved = real(classifier, images, labels, epsilon=epsilon, step=step, steps=steps, generator=generator)
        seen.append((steps, (moved - images).flatten(1).norm(dim=1).max().item()))
        return moved

    monkeypatch.setattr(train_cifar10, "pgd_l2", attack)
    monkeypatch.setattr(train_cifar10, "PEAK_RATE", 1e-9)
    options = ["--adversarial", "0.5", "--precision", "bf16", "--initial", str(tmp_path / "new" / "first.pt")]
    tuned = train(monkeypatch, data, tmp_path / "tuned.pt", *options, epochs=1)
    for name, value in first.items():
        if "running" not in name and "num" not in name:
            torch.testing.assert_close(tuned[name], value, rtol=1e-3, atol=1e-3)
    assert {steps for steps, _ in seen} == {1, 2}
    assert all(0 < moved <= 0.5 + 1e-4 for _, moved in seen)
    told = json.loads((tmp_path / "tuned.json").read_text())
    assert told["training"]["adversarial"] == 0.5
    assert told["training"]["initial"] == digest([(tmp_path / "new" / "first.pt").read_bytes()])
    assert told["weights"] == digest([(tmp_path / "tuned.pt").read_bytes()])
    assert told["test split"]["attacked"]["n"] == told["test split"]["clean"]["n"] == 10
    assert set(told) >= {"command", "commit", "hardware", "versions"}
    assert all(value.dtype == torch.float16 for value in tuned.values() if value.is_floating_point())


@pytest.mark.parametrize(
    "options", [["--epochs", "0"], ["--adversarial", "nan"], ["--adversarial", "-1"]], ids=" ".join
)
def test_senseless_numbers_are_refused_before_any_work(monkeypatch, capsys, options: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_cifar10.py", "--data", "missing", *options])
    with pytest.raises(SystemExit):
        train_cifar10.main()
    assert "must be at least 1" in capsys.readouterr().err


def test_augmented_images_are_shifted_or_flipped_copies() -> None:
    image = torch.arange(32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 1, 32, 32)
    images = image.expand(64, 3, -1, -1)
    augmented = train_cifar10.augment(images, torch.Generator().manual_seed(0)) * 255
    assert augmented.shape == images.shape
    assert torch.equal(augmented[:, 0], augmented[:, 2])
    # Pixels that no shift moves to the border are neighbours as before, from left to right or the other way.
    steps = (augmented[:, 0, 16, 9:23] - augmented[:, 0, 16, 8:22]).round().remainder(251)
    flipped = (steps == 250).sum(dim=1) > (steps == 1).sum(dim=1)
    assert 16 < flipped.sum() < 48
    assert len({tuple(row.tolist()) for row in augmented[:, 0, 16].round()}) > 16
