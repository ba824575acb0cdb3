"""Figure 3: the command line with untrained networks; statistics of known curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dipdefense import classifiers
from dipdefense.datasets import packaged_images
from dipdefense.evaluation import bootstrap, read_export
from dipdefense.files import read_image
from dipdefense.paper import figure3, figure3_report, figure3_sets
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, UNDECIDED
from dipdefense.paper.figure3_claims import (
    SetCurve,
    crossing,
    curve,
    difference,
    extremum,
    findings,
    lead,
    mean_interval,
)
from dipdefense.paper.figure3_report import as_csv
from dipdefense.paper.figure3_sets import SETS

BUDGETS = (10, 30, 100, 300, 1000)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    for seed, name in enumerate(("external", "robust", "standard")):
        torch.manual_seed(seed)
        torch.save(classifiers.untrained_cifar10().network.state_dict(), folder / f"cifar10-{name}.pt")
    return folder


@pytest.fixture
def reproduce(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(figure3_sets, "TARGET_STEPS", 2)

    def reproduced(*arguments: str) -> Path:
        out = tmp_path / "out"
        few = ["--architectures", "2", "--iterations", "30", "--batch", "4", "--steps", "2", "--device", "cpu"]
        figure3.reproduce(description="", weights=weights, arguments=[*few, "--out", str(out), *arguments])
        return out

    return reproduced


def test_the_figure_is_a_picture_a_report_numbers_and_records(
    reproduce: Callable[..., Path], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = reproduce("--images", "3", "--sets", *SETS)
    written = {"figure3.md", "figure3.csv", "figure3.png", "figure3-sets.png"}
    records = {f"figure3-architecture-2-{name}.jsonl" for name in SETS}
    assert {path.name for path in out.iterdir()} == written | records | {"outcomes.sqlite"}
    for name in ("figure3.png", "figure3-sets.png"):
        assert read_image(out / name).pixels.std() > 0.1
    report = (out / "figure3.md").read_text()
    for words in (
        "NOT THE PAPER'S: 3 images instead of 100; 30 iterations of architecture 2 instead of 3000; robust,",
        "not the released ones; 2 steps of the feature matching instead of 1000.",
    ):
        assert words in report
    assert report.count("NOT DECIDABLE YET, architecture 2") == 9
    rows = list(csv.DictReader((out / "figure3.csv").read_text().splitlines()))
    assert {row["iterations"] for row in rows} == {"0", "10", "20", "30"}
    runs = {name: read_export(out / f"figure3-architecture-2-{name}.jsonl") for name in SETS}
    chosen = [record.image for record in runs["original"].records if record.budget == 30]
    assert len(chosen) == 3
    external = classifiers.load("cifar10-cnn", weights=weights / "cifar10-external.pt")
    packaged = packaged_images("cifar10")
    for name, run in runs.items():
        assert run.configuration["set"]["name"] == name
        assert {record.condition for record in run.records} == {name}
        assert [record.image for record in run.records if record.budget == 30] == chosen
    for record in (record for record in runs["original"].records if record.defence == "none"):
        place = packaged.ids.index(record.image)
        confidence = external(packaged.images[[place]]).softmax(dim=1)[0, record.label].item()
        assert record.confidence == pytest.approx(confidence, abs=1e-5)
        assert record.label == packaged.labels[place]
    moved = [record for record in runs["random-target"].records if record.defence == "none"]
    assert all(record.label != packaged.labels[packaged.ids.index(record.image)] for record in moved)
    networks = {name: run.configuration["set"].get("network") for name, run in runs.items()}
    assert networks["non-robust"] == networks["random-target"] != networks["robust"]

    again = (out / "figure3-architecture-2-robust.jsonl").read_text()
    assert reproduce("--images", "3", "--sets", *SETS)
    assert (out / "figure3-architecture-2-robust.jsonl").read_text() == again
    assert "written:" in capsys.readouterr().out


def test_released_sets_are_measured_as_they_are(
    reproduce: Callable[..., Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d_robust_CIFAR"
    folder.mkdir()
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    torch.save([images], folder / "CIFAR_ims")
    torch.save([labels], folder / "CIFAR_lab")
    monkeypatch.setattr(figure3_sets, "_images", lambda path: pytest.fail("released sets need no other images"))
    out = reproduce("--images", "2", "--sets", "robust", "--robust-set", str(folder))
    run = read_export(out / "figure3-architecture-2-robust.jsonl")
    assert run.configuration["data"] == "d_robust_CIFAR"
    assert "made here" not in (out / "figure3.md").read_text()
    other = {(2, "original"): replace(run, configuration=run.configuration | {"data": "photos.zip"})}
    assert "Images: photos.zip, d_robust_CIFAR, not" in figure3_report._subject(other | {(2, "robust"): run})
    external = classifiers.load("cifar10-cnn", weights=weights / "cifar10-external.pt")
    for record in (record for record in run.records if record.defence == "none"):
        place = int(record.image)
        assert record.label == labels[place]
        confidence = external(images[[place]]).softmax(dim=1)[0, labels[place]].item()
        assert record.confidence == pytest.approx(confidence, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        ("--iterations", "20"): "argument --iterations: at least 30, or there is no curve",
        ("--iterations", "30", "40"): "argument --iterations: one number, or one for each of the 1 networks",
        ("--images", "21"): "21 images were asked for, but there are 20",
        ("--classifier", "squeezenet-caffe"): "Figure 3 is of CIFAR-10, whose classifiers have 10 classes",
        ("--robust-set", "."): "CIFAR_ims; a set is a folder with",
    }.items(),
    ids=str,
)
def test_a_usage_error_is_one_line_and_exit_2(
    arguments: tuple[str, ...], message: str, reproduce: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        reproduce(*arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def shaped(mean: list[float], *, n: int = 60, noise: float = 0.1, loss: float = 0.01) -> SetCurve:
    """A curve of this mean confidence, with independent noise by image and budget."""
    chance = np.random.default_rng(7)
    confidence = np.clip(np.array(mean) + noise * chance.normal(size=(n, len(mean))), 0, 1)
    losses = loss * np.exp(0.1 * chance.normal(size=(n, len(mean))))
    images = tuple(map(str, range(n)))
    return SetCurve(
        images, BUDGETS[: len(mean)], confidence, (confidence > 0.5).astype(float), losses, confidence[:, -1]
    )


RISING, PEAKED, DIPPED = [0.1, 0.3, 0.5, 0.7, 0.9], [0.1, 0.5, 0.8, 0.6, 0.4], [0.4, 0.2, 0.1, 0.3, 0.5]


def verdicts(**curves: SetCurve) -> dict[str, str]:
    found = findings({name.replace("_", "-"): each for name, each in curves.items()})
    return {finding.claim.partition(" (")[0]: finding.verdict for finding in found}


def test_the_claims_are_confirmed_of_curves_that_have_what_they_say() -> None:
    peaked, dipped = shaped(PEAKED), shaped(DIPPED, loss=0.02)
    higher = replace(peaked, confidence=np.clip(peaked.confidence + 0.19, 0, 1))
    assert set(verdicts(robust=higher, non_robust=dipped).values()) == {CONFIRMED}
    assert len(verdicts(robust=higher, non_robust=dipped)) == 5


def test_and_contradicted_of_curves_that_have_the_contrary() -> None:
    found = verdicts(robust=shaped(RISING, loss=0.02, noise=0.01), non_robust=shaped(RISING, noise=0.01))
    verdict = dict(zip(("information", "early", "convergence", "trough", "peak"), found.values(), strict=True))
    assert {verdict.pop(name) for name in ("information", "early")} == {UNDECIDED}
    assert set(verdict.values()) == {CONTRADICTED}


def test_a_fit_that_diverged_leaves_the_losses_of_the_others() -> None:
    whole = {"robust": shaped(RISING), "non-robust": shaped(RISING, loss=0.02)}
    lost = whole["robust"].loss.copy()
    lost[3, 1:] = np.nan
    curves = whole | {"robust": replace(whole["robust"], loss=lost)}
    assert curves["robust"].diverged == 1
    (faster,) = (found for found in findings(curves) if "fitted faster" in found.claim)
    assert faster.verdict == CONFIRMED
    assert "n = 59: log10" in faster.details[0]
    few = curves | {"robust": replace(whole["robust"], loss=np.where(np.arange(60)[:, None] < 45, np.nan, lost))}
    assert next(found.verdict for found in findings(few) if "fitted faster" in found.claim) == UNDECIDED
    rows = list(csv.DictReader(as_csv({(1, name): each for name, each in curves.items()}).splitlines()))
    losses = [row for row in rows if (row["measure"], row["set"]) == ("loss", "robust")]
    assert {row["n"] for row in losses} == {"59"}
    assert all(float(row["mean"]) > 0 for row in losses)


def test_below_twenty_images_nothing_is_decided() -> None:
    few = {"robust": shaped(PEAKED, n=19), "non_robust": shaped(DIPPED, n=19)}
    assert set(verdicts(**few).values()) == {UNDECIDED}


def test_noise_alone_makes_a_peak_no_oftener_than_intervals_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    chance = np.random.default_rng(3)
    found = [extremum(0.5 + 0.3 * chance.normal(size=(40, 12)), tuple(range(12)), sign=1) for _ in range(60)]
    assert sum(each.rise.low > 0 and each.fall.low > 0 for each in found) <= 4
    # The highest point of such a curve alone would nearly always be above its end.
    assert np.mean([each.largest > 0.05 for each in found]) > 0.9


def test_a_peak_and_a_trough_are_where_the_mean_has_them() -> None:
    peak = extremum(shaped(PEAKED).confidence, BUDGETS, sign=1)
    assert peak.budget == 100
    assert peak.rise.value == pytest.approx(0.7, abs=0.05)
    assert peak.fall.value == pytest.approx(0.4, abs=0.05)
    trough = extremum(shaped(DIPPED).confidence, BUDGETS, sign=-1)
    assert trough.budget == 100
    assert trough.rise.value == pytest.approx(0.3, abs=0.05)
    assert trough.fall.value == pytest.approx(0.4, abs=0.05)


def test_curves_cross_where_their_means_do() -> None:
    found = crossing(shaped([0.1, 0.2, 0.4, 0.8, 0.9]), shaped([0.4, 0.5, 0.5, 0.5, 0.5]))
    assert found.budget == pytest.approx(100 * 3 ** (1 / 4), rel=0.1)
    assert found.low <= found.budget <= found.high
    assert found.share == 1
    assert crossing(shaped(RISING), shaped([0.0] * 5)).budget is None


def test_the_lead_is_the_early_one_and_its_excess_over_the_end() -> None:
    ahead, more = lead(shaped([0.5, 0.6, 0.7, 0.7, 0.6]), shaped([0.1, 0.2, 0.3, 0.5, 0.5]))
    assert ahead.value == pytest.approx(0.4, abs=0.03)
    assert more.value == pytest.approx(0.3, abs=0.03)


def test_the_interval_of_the_same_images_is_that_of_their_differences() -> None:
    chance = np.random.default_rng(0)
    one = chance.random(50)
    other = one - 0.1 + 0.01 * chance.normal(size=50)
    paired, apart = (difference(one, other, paired=paired) for paired in (True, False))
    assert paired.value == pytest.approx(apart.value) == pytest.approx(0.1, abs=0.01)
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)
    assert paired == mean_interval(one - other)


def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 300)
    chance = np.random.default_rng(1)
    intervals = [mean_interval(chance.random(40)) for _ in range(200)]
    assert 0.88 < np.mean([each.low <= 0.5 <= each.high for each in intervals]) < 0.99


def test_an_unfinished_run_is_refused(reproduce: Callable[..., Path]) -> None:
    out = reproduce("--images", "2", "--sets", "original")
    run = read_export(out / "figure3-architecture-2-original.jsonl")
    with pytest.raises(ValueError, match="the run has 5 outcomes of 6"):
        curve(replace(run, records=tuple(record for record in run.records if record.budget != 30 or record.position)))


def test_a_setting_that_reduces_nothing_warns_of_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figure3_sets, "reduction", lambda *_, **__: [])
    original = SimpleNamespace(name="original", told={}, subject=SimpleNamespace(ids=("a",)))
    figure3_sets.measure_sets(SimpleNamespace(iterations={}), [original])
    assert capsys.readouterr().err == ""


def test_every_setting_of_a_set_is_in_its_configuration(weights: Path) -> None:
    def told(*arguments: str) -> dict[str, Any]:
        setting = figure3.parse_arguments(description="", weights=weights, arguments=["--images", "2", *arguments])
        return {each.name: json.loads(json.dumps(each.told)) for each in figure3_sets.open_sets(setting)}

    usual = told()
    assert usual["robust"]["steps"] == 200
    assert told("--steps", "7")["robust"]["steps"] == 7
    assert told("--robust-network", str(weights / "cifar10-standard.pt"))["robust"] != usual["robust"]
