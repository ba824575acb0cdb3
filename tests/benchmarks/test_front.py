"""Accuracy against time: the front, fast candidates, and reduced reconstructions."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from measuring import CONFIG, CONFIGURATION, record, tiny_subject

from dipdefense import DIPConfig
from dipdefense.evaluation import Run, Setting

sys.path.insert(0, str(ROOT / "benchmarks"))

import front as script
from front_report import CONDITIONS, Point, fast, front, markdown, picture


def point(name: str, budget: int, time: float, *right: float) -> Point:
    return Point(name, budget, time, {str(index): share for index, share in enumerate(right)})


POINTS = [
    point("compact", 500, 500, 0.5, 0.5),
    point("compact", 1000, 1000, 1.0, 0.5),
    point("small", 500, 125, 0.5, 0.0),
    point("small", 1000, 250, 1.0, 1.0),
    point("slow", 1000, 4000, 1.0, 1.0),
]


def test_the_front_has_what_no_other_beats() -> None:
    assert [(p.name, p.budget) for p in front(POINTS)] == [("small", 500), ("small", 1000)]
    assert [(p.name, p.budget) for p in front(POINTS[:2])] == [("compact", 500), ("compact", 1000)]


def test_of_two_as_fast_the_more_accurate_is_in_the_front() -> None:
    assert [p.name for p in front([point("worse", 1, 5, 0.5), point("better", 1, 5, 1.0)])] == ["better"]


def test_fast_candidates_take_at_most_half_of_the_time() -> None:
    assert [(p.name, p.budget) for p in fast(POINTS)] == [("small", 1000), ("compact", 500)]


def test_the_report_and_the_picture() -> None:
    text = markdown(POINTS, images=2, source="some", classifier="c")
    # Differences of 0 and 50 points: 25 ± t(0.975, 1 degree of freedom) = 12.706 times 25.
    row = "| small | 1000 | 250 | 100.0 [34.2, 100.0] | 1 : 0 | 1 | +25.0 [-292.7, +342.7] |"
    same, fastest = text.split("## At most half")
    same = same.split("## At the last iteration")[1]
    assert row in same
    assert row in fastest
    assert "| slow | 1000 | 4000 |" in same
    assert "| compact | 500 | 500 | 50.0 [9.5, 90.5] | 0 : 1 | 1 | -25.0 [-342.7, +292.7] |" in fastest
    assert len(picture(POINTS).axes[0].lines) == 3 + 2


def test_a_longer_run_is_compared_at_the_compact_networks_last_iteration_and_at_its_own() -> None:
    points = [*POINTS, point("small", 1500, 375, 1.0, 1.0), point("small", 2000, 500, 1.0, 1.0)]
    text = markdown(points, images=2, source="some", classifier="c")
    rows = text.split("## At the last iteration")[1].split("## At most half")[0].splitlines()
    assert [row.split(" | ")[0:2] for row in rows if "1000" in row or "small" in row][1:] == [
        ["| small", "1000"], ["| slow", "1000"], ["| small", "2000"],
    ]  # fmt: skip


def test_longer_repeats_the_budgets_on_smaller_images() -> None:
    given = script.parse(["--budgets", "100", "200", "--longer", "3", "--out", "unused"])
    assert script.budgets_of("compact", given) == script.budgets_of("no-skips", given) == (100, 200)
    assert script.budgets_of("half-size", given) == (100, 200, 300, 400, 500, 600)
    usual = script.parse(["--budgets", "100", "200", "--out", "unused"])
    assert script.budgets_of("half-size", usual) == (100, 200)


def test_a_filter_is_drawn_as_a_line_of_its_own() -> None:
    points = [*POINTS, point("filter-2", 0, 0, 1.0, 0.0)]
    assert len(picture(points).axes[0].lines) == 3 + 2 + 1
    assert [(p.name, p.budget) for p in front(points)] == [("filter-2", 0), ("small", 1000)]
    assert "| filter-2 | 0 | 0 | 50.0 [9.5, 90.5] | 0 : 1 | 1 |" in markdown(
        points, images=2, source="some", classifier="c"
    )


def test_points_have_the_mean_over_conditions_and_the_compact_networks_iterations() -> None:
    def run(defence: str, *budgets: int) -> Run:
        records = [
            record(condition=name, defence=defence, budget=budget, prediction=3 if name == "clean" else 4)
            for name in CONDITIONS
            for budget in budgets
        ]
        return Run(CONFIGURATION, tuple(records), {0: {}})

    times = script.Times({"compact": (2.0, 1.0, 4.0), "half-size": (1.0, 0.25, 0.5)})
    runs = {"low-pass": run("low-pass", 2, 3), "compact": run("dip", 4), "half-size": run("dip", 2, 4)}
    outcomes = {"a": 1 / 3}
    assert script.points(runs, times) == [
        Point("low-pass 1/2", 0, 0, outcomes), Point("low-pass 1/3", 0, 0, outcomes), Point("compact", 4, 4, outcomes),
        Point("half-size", 2, 0.5, outcomes), Point("half-size", 4, 1, outcomes),
    ]  # fmt: skip


def test_the_time_is_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def reconstruct(images, *, budgets, on_iteration, **_) -> None:
        for _ in range(budgets[-1]):
            on_iteration()

    ticks = itertools.cycle([0, 10, 20, 21, 22, 23, 24])
    monkeypatch.setattr(script, "reconstruct", reconstruct)
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    given = argparse.Namespace(batch=1, device="cpu", precision="fp32", backend="torch", bf16=[])
    assert script.timed(["compact"], given, (3, 8, 8)).rounds == {"compact": [1.0] * script.ROUNDS}


def test_every_candidate_is_measured_with_its_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"compact": CONFIG, "half-size": dataclasses.replace(CONFIG, reduction=2)}
    monkeypatch.setattr(script, "CANDIDATES", small)
    given = argparse.Namespace(
        candidates=["half-size"], budgets=[1], longer=2, precision="fp32", backend="torch", batch=1, device="cpu",
        bf16=["half-size"],
    )  # fmt: skip
    setting = Setting(out=tmp_path, images=1, seeds=(0, 1), progress=False)
    runs = script.measured(given, setting, tiny_subject(images=1))
    assert list(runs) == ["low-pass", *small]
    assert {name: DIPConfig.from_json(runs[name].configuration["dip"]) for name in small} == small
    assert [runs[name].configuration["precision"] for name in small] == ["float32", "bfloat16"]
    assert [len(run.records) // len(CONDITIONS) for run in runs.values()] == [2, 2, 2 * 2]


def test_candidates_in_bf16_are_timed_in_bf16_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def reconstruct(images, *, budgets, on_iteration, config, precision, **_) -> None:
        seen.append((config.channels, precision))
        for _ in range(budgets[-1]):
            on_iteration()

    monkeypatch.setattr(script, "reconstruct", reconstruct)
    given = argparse.Namespace(batch=1, device="cpu", precision="fp32", backend="torch", bf16=["paper"])
    script.timed(["compact", "paper"], given, (3, 8, 8))
    assert set(seen) == {(32, "fp32"), (128, "bf16")}
    text = markdown(POINTS, images=2, source="some", classifier="c", bf16=["slow"])
    assert "In bf16: slow." in text
    assert "In bf16" not in markdown(POINTS, images=2, source="some", classifier="c")


def test_bf16_for_no_candidate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse(["--candidates", "half-size", "--bf16", "compact", "paper"])
    assert "--bf16 takes names of --candidates; got paper" in capsys.readouterr().err


def test_several_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse(["--seed", "0", "1"])
    assert "--seed takes one seed here; got [0, 1]" in capsys.readouterr().err
