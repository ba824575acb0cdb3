"""bf16 against fp32 on a tiny network: the records, resuming, and the report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

sys.path.insert(0, str(ROOT / "benchmarks"))

import precision
import precision_report
from precision import Record, Setting

from dipdefense import DIPConfig
from dipdefense.classifiers import CIFAR10_CATEGORIES, Classifier, Preprocess
from dipdefense.datasets import packaged_images

COMMAND = ["--setting", "tiny", "--images", "3", "--iterations", "20", "--every", "10", "--device", "cpu"]


class Nearest(nn.Module):
    """The class whose last packaged image is nearest."""

    def __init__(self) -> None:
        super().__init__()
        packaged = packaged_images("cifar10")
        templates = torch.full((10, 3 * 32 * 32), 10.0)
        for label, image in zip(packaged.labels.tolist(), packaged.images, strict=True):
            templates[label] = image.flatten()
        self.register_buffer("templates", templates)

    def forward(self, images: Tensor) -> Tensor:
        return -torch.cdist(images.flatten(1), self.templates)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DIPConfig(scales=2, channels=4, skip_channels=2, input_channels=3)
    monkeypatch.setitem(precision.SETTINGS, "tiny", Setting(config, "nearest", images=3, batch=2))

    def load(name: str, **_: object) -> Classifier:
        return Classifier(
            Nearest(), name=name, mean=(0.0,) * 3, std=(1.0,) * 3,
            preprocess=Preprocess(resize=32, crop=32), categories=CIFAR10_CATEGORIES,
        )  # fmt: skip

    monkeypatch.setattr(precision.classifiers, "load", load)


def fits(folder: Path) -> dict[str, dict]:
    """By precision, all that is stored of each fit but for its time and session."""
    return {
        name: {key: fit | {"seconds": 0, "session": 0} for key, fit in Record(folder / f"{name}.jsonl").fits.items()}
        for name in ("fp32", "bf16")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _tiny.__wrapped__(monkeypatch)
        precision.main([*COMMAND, "--out", str(folder)])
    return folder


def test_the_record_has_every_fit_and_how_it_came_about(finished: Path) -> None:
    for name in ("fp32", "bf16"):
        record = Record(finished / f"{name}.jsonl")
        assert len(record.fits) == 6
        assert {seed for seed, _ in record.fits} == {0, 1}
        (session,) = record.head["sessions"]
        assert session.keys() >= {"command", "commit", "hardware", "versions"}
        assert record.head["configuration"]["budgets"] == [10, 20]
        for fit in record.fits.values():
            assert len(fit["losses"]) == 2
            # The loss at a budget is the error of the output there.
            expected = -10 * torch.tensor(fit["losses"]).log10()
            assert fit["psnr_attacked"] == pytest.approx(expected.tolist(), rel=1e-4)
            assert fit["psnr_clean"] != fit["psnr_attacked"]
            assert all(0 <= value <= 1 for value in fit["confidences"])
            assert len(fit["predictions"]) == len(fit["confidences"]) == 2
    # From the same initial weights and noise: the precisions differ, but at first by far less than two seeds.
    own, seeds, _ = precision_report.differences(precision_report.collect(fits(finished)), "log loss")
    assert 0 < own[:, 0].mean() < seeds[:, 0].mean() / 2
    report = (finished / "report.md").read_text()
    assert report.count("differs from fp32 by more than two seeds of fp32 do:") == 5
    assert (finished / "precision.png").stat().st_size > 0
    assert not list(finished.glob(".*"))


@pytest.mark.parametrize("way", ["native", "native-bf16"])
def test_the_native_kernels_are_compared_likewise(native, way: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dipdefense.processor.features", lambda: frozenset({"avx512_bf16"}))
    command = [*COMMAND, "--against", way, "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        precision.main([*command, "--only", "bf16"])
    precision.main(command)
    ways = {name: Record(tmp_path / f"{name}.jsonl").fits for name in ("fp32", way)}
    own, seeds, _ = precision_report.differences(precision_report.collect(ways), "PSNR to the attacked image")
    # The fresh noise is another, so even the first iterations differ.
    assert 0 < own.mean() < 3 * seeds.mean()
    assert f"{way} differs from fp32 by more than two seeds" in (tmp_path / "report.md").read_text()


def test_a_killed_run_resumes_with_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    fit = precision.fit

    def killed(*arguments, **options) -> list:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(options["way"])
        return fit(*arguments, **options)

    command = [*COMMAND, "--out", str(tmp_path)]
    monkeypatch.setattr(precision, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        precision.main(command)
    assert len(Record(tmp_path / "fp32.jsonl").fits) == 5
    precision.main([*command, "--report"])
    assert "nothing to report yet" in capsys.readouterr().out
    calls.clear()

    def counted(*arguments, **options) -> list:
        calls.append(options["way"])
        return fit(*arguments, **options)

    monkeypatch.setattr(precision, "fit", counted)
    # Two processes share the rest.
    for name in ("fp32", "bf16"):
        precision.main([*command, "--only", name])
    assert calls == ["fp32", *["bf16"] * 4]
    assert len(Record(tmp_path / "fp32.jsonl").head["sessions"]) == 2
    assert fits(tmp_path) == fits(finished)
    precision.main(command)
    assert len(calls) == 5


def test_another_configuration_is_refused(finished: Path) -> None:
    before = (finished / "fp32.jsonl").read_bytes()
    command = [*COMMAND, "--out", str(finished)]
    command[command.index("--iterations") + 1] = "30"
    with pytest.raises(ValueError, match="fits with another budgets; give another --out"):
        precision.main(command)
    assert (finished / "fp32.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--seeds", "1"], "two different numbers"),
        (["--seeds", "1", "1"], "two different numbers"),
        (["--every", "15"], "multiple of 10"),
        (["--iterations", "25"], "one of --every"),
        (["--images", "0"], "at least 1"),
    ],
)
def test_a_command_that_cannot_be_run(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precision.parse_arguments([*COMMAND, *wrong])
    assert message in capsys.readouterr().err


def test_too_few_images_that_the_classifier_gets_right(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--images 21 was asked for, but only \d+ are"):
        precision.main([*COMMAND, "--images", "21", "--out", str(tmp_path)])


def invented(shift: float, between_seeds: float, *, wrong: bool = False, every: int = 1) -> dict[tuple[int, str], dict]:
    """Ten images, two seeds, two budgets; one image of ``every`` is shifted."""
    return {
        (seed, f"image {image}"): {
            "seed": seed, "image": f"image {image}", "label": 1, "status": "ok", "seconds": 1.0,
            "undefended": {"prediction": image % 2, "confidence": 0.5},
            "losses": [2.718281828459045 ** (shift + seed * between_seeds - budget) for budget in (1, 1, 2, 2)],
            "psnr_attacked": [30 + image + shift + seed * between_seeds] * 2,
            "psnr_clean": [25 + image + (0 if image % every else shift) + seed * between_seeds] * 2,
            "predictions": [1, 2 if wrong and seed else 1],
            "confidences": [0.5, 0.5],
        }
        for image in range(10) for seed in (0, 1)
    }  # fmt: skip


def test_the_differences_are_those_between_ways_and_between_seeds() -> None:
    measured = precision_report.collect({"fp32": invented(0, 0.5), "bf16": invented(-0.25, 0.5, wrong=True)})
    assert (len(measured.images), measured.seeds, sum(measured.undefended)) == (10, (0, 1), 5)
    for quantity in ("log loss", "PSNR to the attacked image", "PSNR to the clean image"):
        own, seeds, signed = precision_report.differences(measured, quantity)
        assert own.flatten().tolist() == pytest.approx([0.25] * 20)
        assert seeds.flatten().tolist() == pytest.approx([0.5] * 20)
        assert signed.flatten().tolist() == pytest.approx([-0.25] * 20)
    own, seeds, signed = (part.mean(dim=0).tolist() for part in precision_report.differences(measured, "decision"))
    assert own == [0, 0.5]
    assert seeds == [0, 0]
    assert signed == [0, -0.5]


@pytest.mark.parametrize(
    ("shift", "every", "verdict"),
    [(0.25, 1, "no"), (1.0, 1, "yes"), (float("nan"), 1, "yes"), (1.0, 2, "not shown, by 60% at most")],
)
def test_the_verdict(shift: float, every: int, verdict: str) -> None:
    measured = precision_report.collect({"fp32": invented(0, 0.5), "bf16": invented(shift, 0.5, every=every)})
    configuration = {"setting": "s", "classifier": "c", "data": "d", "attack": "a"}
    head = {"configuration": configuration, "sessions": []}
    lines = list(precision_report.as_markdown(measured, [10, 20], {"fp32": head, "bf16": head}))
    (line,) = (line for line in lines if line.startswith("- **PSNR to the clean image:"))
    assert f"two seeds of fp32 do: {verdict}**" in line
    (line,) = (line for line in lines if line.startswith("- **decision:"))
    assert "two seeds of fp32 do: no**" in line


def test_an_image_that_one_precision_lacks_is_left_out() -> None:
    fp32, bf16 = invented(0, 0.5), invented(0, 0.5)
    del bf16[1, "image 3"]
    measured = precision_report.collect({"fp32": fp32, "bf16": bf16})
    assert len(measured.images) == 9
    assert "image 3" not in measured.images
    assert precision_report.collect({"fp32": fp32, "bf16": {}}) is None


def test_the_interval_covers_the_mean() -> None:
    low, high = precision_report.interval(torch.arange(20.0))
    # 9.5 ± 1.96 · 5.77 / √20
    assert (low, high) == (pytest.approx(7.0, abs=0.2), pytest.approx(12.0, abs=0.2))
