"""``dipdefense evaluate``: the arguments of ``evaluate``, and its report's files."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ROOT
from torch import nn

from dipdefense import DIPPurifier, datasets, evaluation
from dipdefense.cli import ending
from dipdefense.cli.command import command
from dipdefense.evaluation import AdaptiveReport

FAST = ["--config", "architecture-2", "--device", "cpu", "--iters", "1"]


def evaluate(out: Path, *words: object) -> Result:
    return CliRunner().invoke(command, ["evaluate", str(out), *FAST, *map(str, words)])


@pytest.fixture
def given(monkeypatch) -> dict:
    """Every call's arguments; the report is of a cheap defence and classifier."""
    calls: dict = {}
    torch.manual_seed(0)
    cheap = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    inner = evaluation.evaluate

    def fake(defence, classifier, images, labels, **settings) -> AdaptiveReport:
        calls.update(defence=defence, classifier=classifier, images=images, labels=labels, **settings)
        settings.pop("folder")
        return inner(nn.Identity(), cheap, images[..., :16, :16], labels % 10, **settings)

    monkeypatch.setattr(evaluation, "evaluate", fake)
    return calls


def test_the_report_is_shown_and_written(tmp_path: Path, given: dict) -> None:
    result = evaluate(tmp_path / "out", "--images", 2, "--epsilon", 4, "--epsilon", 8, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert isinstance(given["defence"], DIPPurifier)
    assert (given["defence"].iters, given["defence"].seed) == (1, None)
    assert given["images"].shape == (2, 3, 224, 224)
    assert (given["level"], given["epsilon"], given["norm"], given["seed"]) == ("quick", (4.0, 8.0), "Linf", 3)
    assert given["folder"] == tmp_path / "out"
    assert "Plan of the level" in result.stderr
    assert "REDUCED ATTACK" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "report.json"}
    stored = AdaptiveReport.from_json((tmp_path / "out" / "report.json").read_text())
    assert str(stored).strip() == result.stdout.strip()


def test_more_images_begin_with_the_same_ones(tmp_path: Path, given: dict) -> None:
    assert evaluate(tmp_path / "out", "--images", 2).exit_code == 0
    two = given["images"]
    document = json.loads(evaluate(tmp_path / "out", "--images", 3, "--json").stdout)
    assert torch.equal(given["images"][:2], two)
    assert document["configuration"]["adaptive"]["level"] == "quick"
    packaged = datasets.packaged_images("imagenet")
    assert set(given["labels"].tolist()) <= set(packaged.labels.tolist())


def test_fewer_images_than_asked_for_are_refused(tmp_path: Path, given: dict) -> None:
    result = evaluate(tmp_path / "out", "--images", 21)
    assert (result.exit_code, "21 images were asked for" in result.output) == (2, True)
    assert not given
    assert not (tmp_path / "out").exists()


def test_too_small_a_folder_is_refused_before_its_images_are_read(tmp_path: Path, given: dict) -> None:
    folder = tmp_path / "in" / "n01440764"
    folder.mkdir(parents=True)
    (folder / "broken.jpg").write_bytes(b"no image")
    result = evaluate(tmp_path / "out", "--data", tmp_path / "in", "--images", 2)
    assert (result.exit_code, "2 images were asked for, and there are 1" in result.output) == (2, True)
    assert "FAILED" not in result.output


def test_an_interrupt_is_told(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*given, **named):
        raise ending.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    result = evaluate(tmp_path / "out", "--images", 1)
    assert (result.exit_code, result.stderr.strip()) == (143, "Terminated. The same command resumes.")


def test_a_full_disk_is_no_error_of_usage(tmp_path: Path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> AdaptiveReport:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation, "evaluate", fails)
    result = evaluate(tmp_path / "out", "--images", 1)
    assert (result.exit_code, "No space left on device" in result.stderr) == (ending.STOPPED, True)
    assert "Usage" not in result.stderr


def test_a_lack_of_memory_ends_it_in_a_line(tmp_path: Path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> AdaptiveReport:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(evaluation, "evaluate", fails)
    result = evaluate(tmp_path / "out", "--images", 1)
    assert result.exit_code == ending.STOPPED
    assert "OutOfMemoryError: no memory. The same command resumes" in result.stderr


def test_a_classifier_of_cifar10_gets_its_images(tmp_path: Path, given: dict) -> None:
    weights = ROOT / "benchmarks" / "weights" / "cifar10-external.pt"
    result = evaluate(tmp_path / "out", "--images", 2, "--classifier", "cifar10-cnn", "--weights", weights)
    assert result.exit_code == 0, result.output
    assert given["images"].shape == (2, 3, 32, 32)
    assert given["labels"].max() < 10


def test_a_broken_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "outcomes.sqlite").write_bytes(b"no store" * 200)
    result = evaluate(tmp_path / "out", "--images", 1)
    assert (result.exit_code, "outcomes.sqlite" in result.stderr) == (3, True)
