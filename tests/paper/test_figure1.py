"""Figure 1: its command line, reports of made-up curves, and a run end to end."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from measuring import CIRCUMSTANCES, CONFIGURATION, record

from dipdefense import DIPConfig, classifiers
from dipdefense.evaluation import Run, read_export
from dipdefense.evaluation.curves import confidence_curves
from dipdefense.paper.claims import CONFIRMED, CONTRADICTED, UNDECIDED, Finding
from dipdefense.paper.figure1 import reproduce
from dipdefense.paper.figure1_claims import findings
from dipdefense.paper.figure1_plots import by_adversary, by_strength
from dipdefense.paper.figure1_report import as_markdown, as_text, headline, write_report
from dipdefense.paper.figure1_setting import BUDGETS, CONDITIONS, parse_arguments
from dipdefense.paper.published import FIGURE_1_CLAIMS

FEW = ("clean", "fgsm-5", "bi-5", "llci-5")


def early(condition: str, image: int, budget: int) -> float:
    """A peak in the first half, the earlier the stronger the attack and under LLCI."""
    epsilon = int(condition.partition("-")[2] or 0)
    peak = 500 - 3 * epsilon - 100 * condition.startswith("llci") + 10 * (image % 3)
    return max(0.0, 0.9 - epsilon / 200 - abs(budget - peak) / 800)


def rising(condition: str, image: int, budget: int) -> float:
    return budget / 1200 - image / 1000


def flat(condition: str, image: int, budget: int) -> float:
    return 0.5 + (0.1 if (image + budget // 100) % 2 else -0.1)


def made(
    shape: Callable[[str, int, int], float] = early,
    *,
    images: int = 20,
    conditions: Sequence[str] = tuple(CONDITIONS),
    undefended: float = 0.02,
    config: DIPConfig | None = None,
) -> Run:
    """Curves of a shape, and adversarial images with a confidence of their own."""
    records = []
    for condition in conditions:
        for image in range(images):
            told = {"position": image, "condition": condition}
            alone = 0.99 if condition == "clean" else undefended
            records.append(record(f"{image}", defence="none", budget=0, confidence=alone, **told))
            records += [
                record(f"{image}", budget=budget, confidence=shape(condition, image, budget), **told)
                for budget in BUDGETS
            ]
    configuration = CONFIGURATION | {
        "dip": dataclasses.asdict(config or DIPConfig.paper()),
        "input": [3, 224, 224],
        "classifier": "efficientnet-lite0",
    }
    return Run(json.loads(json.dumps(configuration)), tuple(records), {0: CIRCUMSTANCES})


def found(run: Run) -> dict[str, Finding]:
    statements = {claim.statement: name for name, claim in FIGURE_1_CLAIMS.items()}
    return {statements[finding.claim.split(" (")[0]]: finding for finding in findings(confidence_curves(run.records))}


def test_a_bare_call_is_the_papers_on_a_gpu_and_reduced_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = parse_arguments(description="", arguments=["--device", "cuda"])
    assert (gpu.images, gpu.budgets, gpu.config) == (20, BUDGETS, DIPConfig.paper())
    assert gpu.conditions == tuple(CONDITIONS)
    assert list(CONDITIONS)[:5] == ["clean", "fgsm-1", "fgsm-5", "fgsm-25", "fgsm-100"]
    cpu = parse_arguments(description="", arguments=["--device", "cpu"])
    assert (cpu.conditions, cpu.config, cpu.data) == (FEW, DIPConfig.compact(), None)
    # A tenth of a second an iteration and image on two cores.
    assert cpu.images is not None
    assert cpu.images * len(cpu.conditions) * cpu.budgets[-1] * 0.1 < 500


@pytest.mark.parametrize(
    ("line", "message"),
    {"--conditions fgsm-2": "invalid choice: 'fgsm-2'", "--budgets 300 200": "budgets must ascend"}.items(),
)
def test_bad_arguments_are_one_line_and_exit_2(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(description="", arguments=["--device", "cpu", *line.split()])
    assert exit_.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told


def test_curves_as_the_paper_describes_them_confirm_all_of_it() -> None:
    results = found(made())
    assert {name: finding.verdict for name, finding in results.items()} == dict.fromkeys(FIGURE_1_CLAIMS, CONFIRMED)
    assert [len(finding.details) for finding in results.values()] == [12, 12, 12, 4, 3]
    assert results["recovery"].details[1].startswith("FGSM ε=5: peak 0.86 [")
    assert "at 500, the adversarial image 0.02, p = " in results["recovery"].details[1]


def test_curves_that_rise_to_the_end_contradict_the_fall_and_the_early_peak() -> None:
    results = found(made(rising))
    assert results["recovery"].verdict == CONFIRMED
    assert results["return"].verdict == results["early"].verdict == CONTRADICTED
    assert "0.82 [0.82, 0.83] at 1000, 0.41 [0.40, 0.41] at 500, p = " in results["return"].details[0]
    assert results["strengths"].verdict == results["adversaries"].verdict == UNDECIDED


def test_outputs_below_the_adversarial_images_contradict_recovery() -> None:
    assert found(made(undefended=0.95))["recovery"].verdict == CONTRADICTED


def test_nothing_is_decided_where_images_differ_by_chance_or_are_two() -> None:
    results = found(made(flat, undefended=0.55))
    assert {results[name].verdict for name in ("return", "adversaries", "strengths")} == {UNDECIDED}
    assert {finding.verdict for finding in found(made(images=2)).values()} == {UNDECIDED}


def test_a_certain_but_tiny_peak_decides_nothing() -> None:
    def tiny(condition: str, image: int, budget: int) -> float:
        return 0.025 + early(condition, image, budget) / 50

    results = found(made(tiny))
    assert {results[name].verdict for name in ("recovery", "return", "early")} == {UNDECIDED}
    assert "p = 0.0024: not decidable yet" in results["return"].details[0]


def test_a_claim_of_every_attack_is_not_confirmed_by_three() -> None:
    results = found(made(conditions=FEW))
    assert {results[name].verdict for name in ("recovery", "return", "early")} == {UNDECIDED}
    assert results["return"].details[0].endswith(": confirmed")
    assert results["return"].details[-1].startswith("not measured: FGSM ε=1, FGSM ε=25")
    assert results["adversaries"].verdict == CONFIRMED
    assert "strengths" not in results


@pytest.mark.parametrize("form", [as_text, as_markdown], ids=["text", "Markdown"])
def test_reports_say_what_they_are_of(form: Callable[[Run], str]) -> None:
    full, reduced = (" ".join(form(run).split()) for run in (made(), made(images=3, conditions=FEW)))
    for words in ("defence-unaware", "is not robustness", "Images: 20 of", "2,217,831 parameters", "abacus", "104 at"):
        assert words in full
    assert "REDUCED" not in full
    assert "REDUCED SETTING, NOT THE PAPER'S: 3 images instead of 20; 3 attacks instead of 12." in reduced
    assert "NOT DECIDABLE YET in this setting: At its peak" in reduced
    assert "CONFIRMED: At its peak" in full


def test_the_peaks_table_has_the_numbers_of_the_curves() -> None:
    run = made(conditions=FEW)
    (fgsm,) = (curve for curve in confidence_curves(run.records) if curve.condition == "fgsm-5")
    line = next(line for line in headline(run).splitlines() if line.startswith("| FGSM ε=5 "))
    peak = fgsm.peak
    place = f"{peak.value:g} [{peak.low:g}, {peak.high:g}]"
    assert line == (f"| FGSM ε=5 | 0.02 | {place} | {fgsm.at(int(peak.value))} | {fgsm.at(1000)} | 500 |")


def test_pictures_have_every_curve() -> None:
    run = made(images=6)
    curves = confidence_curves(run.records)
    means = by_adversary(curves, "Title", ["About."])
    assert [axes.get_title() for axes in means.axes] == ["FGSM", "BI", "LLCI"]
    for axes, name in zip(means.axes, ("fgsm", "bi", "llci"), strict=True):
        shown = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == len(BUDGETS)]
        wanted = ["clean", *(f"{name}-{epsilon}" for epsilon in (1, 5, 25, 100))]
        assert shown == [curve.mean for condition in wanted for curve in curves if curve.condition == condition]
    every = by_strength(curves, "Title", ["About."])
    assert [axes.get_title() for axes in every.axes][:4] == ["FGSM, ε = 1", "BI, ε = 1", "LLCI, ε = 1", "FGSM, ε = 5"]
    (fgsm,) = (curve for curve in curves if curve.condition == "fgsm-1")
    faint = [list(line.get_ydata()) for line in every.axes[0].lines if line.get_label() == "an image"]
    assert faint == fgsm.confidences.tolist()


def test_files(tmp_path: Path) -> None:
    run = made(images=3, conditions=("clean", "bi-25"))
    paths = write_report(run, folder=tmp_path / "new")
    assert [path.name for path in paths] == [
        f"figure1{end}" for end in (".txt", ".md", ".csv", ".png", "-images.png", ".jsonl")
    ]
    rows = list(csv.DictReader(paths[2].open()))
    assert len(rows) == 2 * (1 + len(BUDGETS))
    assert (rows[0]["iterations"], rows[0]["confidence"], rows[0]["from"]) == ("0", "0.99", "")
    again = write_report(read_export(paths[-1]), folder=tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    clean = write_report(made(images=2, conditions=("clean",)), folder=tmp_path / "clean")
    assert [path.name for path in clean] == ["figure1.txt", "figure1.md", "figure1.csv", "figure1.jsonl"]


def test_end_to_end_the_store_is_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(classifiers.untrained_cifar10().network.state_dict(), weights)

    def call(*changes: str) -> Run:
        line = (
            f"figure1.py --device cpu --classifier cifar10-cnn --weights {weights} --images 1 --config architecture-2"
        )
        monkeypatch.setattr("sys.argv", [*line.split(), "--out", str(tmp_path / "out"), *changes])
        reproduce(description="")
        return read_export(tmp_path / "out" / "figure1.jsonl")

    first = call("--budgets", "2", "3", "--conditions", "clean", "bi-100")
    told = capsys.readouterr()
    for stream in (told.out, told.err):
        assert "REDUCED SETTING, NOT THE PAPER'S: 1 image instead of 20; 1 attack instead of 12; 32×32 pixels" in (
            " ".join(stream.split())
        )
    assert {(r.condition, r.defence, r.budget) for r in first.records} == {
        (condition, *column) for condition in ("clean", "bi-100") for column in (("none", 0), ("dip", 2), ("dip", 3))
    }
    second = call("--budgets", "2", "3", "--conditions", "clean", "bi-100", "llci-1")
    assert [r for r in second.records if r.condition != "llci-1"] == list(first.records)
