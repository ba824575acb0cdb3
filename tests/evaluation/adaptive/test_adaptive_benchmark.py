"""benchmarks/adaptive.py: from a command line to records, reports and back."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from measuring import CONFIG, timeless, tiny_subject

from dipdefense.evaluation import STORE, Level, Record, Store, export, measurement
from dipdefense.evaluation.adaptive.benchmark import AdaptiveSetting, measure_adaptive, opponents, parse_arguments
from dipdefense.evaluation.adaptive.names import named
from dipdefense.evaluation.adaptive.report import AdaptiveReport
from dipdefense.evaluation.adaptive.script import _stored_probes, probed, read_report, reproduce, write_report
from dipdefense.evaluation.protocol import digits

BRIEF = Level(
    name="brief",
    attacks={"transfer": {"steps": 2}, "bpda": {"steps": 2}, "known-seed": {"steps": 2}},
    controls={"one-step": {"steps": 1}},
    draws=2,
    control_draws=1,
    repeats=1,
    repeated=2,
)


def tiny_setting(folder: Path, **changes: Any) -> AdaptiveSetting:
    asked: dict[str, Any] = {
        "level": BRIEF, "attackers": ("transfer", "bpda", "known-seed", "one-step"), "epsilons": (16.0,),
        "config": CONFIG, "budgets": (2, 3), "batch": 2, "images": 3, "progress": False, "out": folder,
    }  # fmt: skip
    return AdaptiveSetting(**(asked | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdaptiveReport, Path]:
    folder = tmp_path_factory.mktemp("whole")
    setting, subject = tiny_setting(folder), tiny_subject(images=3)
    against = opponents(setting, subject)
    return AdaptiveReport(measure_adaptive(setting, subject, against), probed(setting, subject, against)), folder


def test_attacks_are_judged_on_their_own_defence_and_transfer_on_all(whole: tuple[AdaptiveReport, Path]) -> None:
    report, _ = whole
    assert report.columns == [
        ("none", 0), ("randomisation", 1), ("dip", 2), ("dip", 3),
        ("dip-known-seed", 2), ("dip-known-seed", 3), ("randomisation-known-seed", 1),
    ]  # fmt: skip
    seen = {(r.condition, r.defence, r.budget) for r in report.run.records}
    assert {(defence, budget) for c, defence, budget in seen if c == "transfer-16"} == set(report.columns[:4])
    assert {(defence, budget) for c, defence, budget in seen if c == "bpda-16@dip-3"} == {("dip", 3)}
    assert ("known-seed-16@dip-3", "dip-known-seed", 3) in seen
    assert ("known-seed-16@dip-3", "dip-known-seed", 2) not in seen
    repeated = {r.image for r in report.run.records if r.condition == "bpda-16@dip-3#1"}
    assert len(repeated) == 2


def test_a_report_is_written_and_read_back(whole: tuple[AdaptiveReport, Path], tmp_path: Path) -> None:
    report, _ = whole
    written = write_report(report, tmp_path)
    assert {path.name for path in written} == {
        "adaptive.txt", "adaptive.md", "adaptive.png", "adaptive.jsonl", "adaptive-probes.json",
    }  # fmt: skip
    again = read_report(tmp_path)
    assert again == report
    assert again.markdown() == (tmp_path / "adaptive.md").read_text()
    assert "REDUCED SETTING, NOT THE PAPER'S: 3 iterations at most" in (tmp_path / "adaptive.txt").read_text()


class DyingStore(Store):
    """Dies at one of its writes, before or after it."""

    deaths: Iterable[int] = ()
    writes = itertools.count()

    def add(self, run: str, records: Iterable[Record]) -> None:
        number = next(type(self).writes)
        if number in type(self).deaths:
            raise KeyboardInterrupt
        super().add(run, records)


def test_a_kill_and_a_resume_give_the_same_numbers(
    whole: tuple[AdaptiveReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "Store", DyingStore)
    monkeypatch.setattr(DyingStore, "deaths", {3, 20, 41, 42, 70})
    monkeypatch.setattr(DyingStore, "writes", itertools.count())
    kills = 0
    while True:
        try:
            run = measure_adaptive(tiny_setting(tmp_path), tiny_subject(images=3))
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == 5
    assert timeless(run) == timeless(whole[0].run)


@pytest.mark.parametrize("death", [3, 20, 41])
def test_a_report_of_a_killed_run_has_what_is_complete(
    whole: tuple[AdaptiveReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    monkeypatch.setattr(measurement, "Store", DyingStore)
    monkeypatch.setattr(DyingStore, "deaths", {death})
    monkeypatch.setattr(DyingStore, "writes", itertools.count())
    with pytest.raises(KeyboardInterrupt):
        measure_adaptive(tiny_setting(tmp_path), tiny_subject(images=3))
    stored = measure_adaptive(tiny_setting(tmp_path, report=True), tiny_subject(images=3)).records
    wanted, counts = Counter(map(cell, whole[0].run.records)), Counter(map(cell, stored))
    assert counts == {name: wanted[name] for name in counts}
    with Store(tmp_path / STORE) as store:
        everything = Counter(map(cell, store.load(store.open_run(whole[0].run.configuration)).records))
    assert counts.keys() == {name for name in everything if everything[name] == wanted[name]}
    assert len(counts) < len(everything) or death == 3


def cell(record: Record) -> tuple[str, str, int]:
    return record.condition, record.defence, record.budget


def test_a_report_joins_what_several_commands_measured(tmp_path: Path) -> None:
    setting = tiny_setting(tmp_path, budgets=(2,), defences=("none", "dip"))
    for attackers, epsilon in ((("transfer", "bpda"), 16.0), (("bpda",), 8.0)):
        measure_adaptive(dataclasses.replace(setting, attackers=attackers, epsilons=(epsilon,)), tiny_subject(images=3))
    both = dataclasses.replace(setting, epsilons=(8.0, 16.0), report=True)
    run = measure_adaptive(both, tiny_subject(images=3))
    attacks = {parts.attack + digits(parts.epsilon) for r in run.records if (parts := named(r.condition))}
    assert attacks == {"noise8", "noise16", "transfer16", "bpda8", "bpda16"}
    assert "| transfer |" not in AdaptiveReport(run).markdown().split("## Accuracy at ε = 16")[0]
    # Of more images only the further seeds of the attacks are complete, which take the first two.
    more = measure_adaptive(both, tiny_subject(images=4))
    repeats = {parts.repeat for r in more.records if (parts := named(r.condition))}
    assert repeats == {1}
    assert "Several seeds of the attacks" in str(AdaptiveReport(more))


def test_a_report_of_nothing_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = tiny_setting(tmp_path, report=True)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: setting)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.open_subject", lambda _: tiny_subject(images=3))
    with pytest.raises(SystemExit):
        reproduce(None)
    assert capsys.readouterr().err.endswith(f"{tmp_path} has no evaluation to report on\n")
    assert not list(tmp_path.iterdir())
    with Store(tmp_path / STORE):
        pass
    with pytest.raises(SystemExit):
        reproduce(None)
    out, err = capsys.readouterr()
    assert err.endswith("outcomes.sqlite has nothing of this evaluation in full yet\n")
    assert out == ""


class MortalStore(Store):
    """It dies before the first outcome of the reconstruction under the transfer attack."""

    def add(self, run: str, records: Iterable[Record]) -> None:
        records = list(records)
        if records[0].defence == "dip" and records[0].condition.startswith("transfer"):
            raise KeyboardInterrupt
        super().add(run, records)


def test_what_an_export_restores_mixes_no_two_examples_of_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tiny_setting(tmp_path, attackers=("transfer",), defences=("none", "dip"), budgets=(2,), batch=4, images=2)
    write_report(AdaptiveReport(measure_adaptive(setting, tiny_subject(images=2))), tmp_path)
    more = dataclasses.replace(setting, images=4, defences=("none", "randomisation", "dip"))
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "Store", MortalStore)
        with pytest.raises(KeyboardInterrupt):
            measure_adaptive(more, tiny_subject(images=4))
    resumed = measure_adaptive(more, tiny_subject(images=4))
    at_once = measure_adaptive(dataclasses.replace(more, out=tmp_path / "other"), tiny_subject(images=4))
    assert timeless(resumed) == timeless(at_once)


def test_exported_records_are_resumed_from(whole: tuple[AdaptiveReport, Path], tmp_path: Path) -> None:
    write_report(whole[0], tmp_path)
    run = measure_adaptive(tiny_setting(tmp_path), tiny_subject(images=3))
    assert timeless(run) == timeless(whole[0].run)


def test_fewer_attackers_measure_less_and_share_outcomes(tmp_path: Path) -> None:
    setting = tiny_setting(tmp_path, attackers=("bpda",), budgets=(2,), defences=("none", "dip"))
    few = measure_adaptive(setting, tiny_subject(images=2))
    assert {r.condition for r in few.records} == {"clean", "noise-16", "bpda-16@dip-2", "bpda-16@dip-2#1"}
    more = measure_adaptive(dataclasses.replace(setting, attackers=("transfer", "bpda")), tiny_subject(images=3))
    text = " ".join(str(AdaptiveReport(few)).split())
    assert "Attacks: BPDA (2 steps)." in text
    kept = {r.key: r.confidence for r in more.records}
    assert all(kept[r.key] == r.confidence for r in few.records if r.position < 2)


def test_a_dry_run_prints_the_plan_and_stops(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = tiny_setting(tmp_path / "new", dry_run=True)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: setting)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.open_subject", lambda _: tiny_subject(images=3))
    reproduce(None)
    out = capsys.readouterr().out
    assert 'Plan of the level "brief"' in out
    assert "purifications an image" in out
    assert not (tmp_path / "new").exists()


def test_a_missing_library_ends_it_in_one_line_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack.square", None)
    setting = tiny_setting(tmp_path / "new")
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: setting)
    with pytest.raises(SystemExit) as ended:
        reproduce(None)
    assert ended.value.code == 2
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_attack_that_the_classifier_does_not_suit_ends_it_before_the_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = Level(name="own", attacks={"bpda": {"steps": 1, "targeted": True, "restarts": 5}}, draws=1)
    setting = tiny_setting(tmp_path / "new", level=level, attackers=("bpda",), dry_run=True)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: setting)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.open_subject", lambda _: tiny_subject(images=3))
    with pytest.raises(SystemExit) as ended:
        reproduce(None)
    assert ended.value.code == 2
    assert "restarts must be fewer than the classes" in capsys.readouterr().err


def test_two_seeds_share_no_draw_and_keep_their_choice_of_images(tmp_path: Path) -> None:
    zero, one = (tiny_setting(tmp_path, seeds=(seed,)) for seed in (0, 1))
    assert zero.draws == (0, 1)
    assert not set(zero.draws) & set(one.draws)
    more = dataclasses.replace(one, level=dataclasses.replace(one.level, draws=9))
    assert more.draws[:2] == one.draws
    run = measure_adaptive(
        dataclasses.replace(one, attackers=("bpda",), defences=("none", "randomisation")), tiny_subject(images=3)
    )
    assert run.configuration["selection seed"] == 1
    assert {record.seed for record in run.records if record.defence == "randomisation"} == set(one.draws)


def test_a_report_probes_no_defence_whose_report_is_there(
    whole: tuple[AdaptiveReport, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, folder = whole
    write_report(report, folder)
    monkeypatch.setattr(
        "dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: tiny_setting(folder, report=True)
    )
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.open_subject", lambda _: tiny_subject(images=3))
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.probe", None)
    reproduce(None)
    assert "properties of the defence" not in capsys.readouterr().out
    # Of another network nothing is known.
    other = tiny_setting(folder, report=True, config=dataclasses.replace(CONFIG, learning_rate=0.02))
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: other)
    with pytest.raises((TypeError, SystemExit)):
        reproduce(None)


def test_a_report_of_a_killed_run_measures_nothing(
    whole: tuple[AdaptiveReport, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(whole[0].run, tmp_path / "adaptive.jsonl")
    setting = tiny_setting(tmp_path, report=True)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.parse_arguments", lambda _: setting)
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.open_subject", lambda _: tiny_subject(images=3))
    monkeypatch.setattr("dipdefense.evaluation.adaptive.script.probe", lambda *_: pytest.fail("probed"))
    with Store(tmp_path / STORE):
        pass
    reproduce(None)
    assert "written:" in capsys.readouterr().out
    assert "- NOT MEASURED: properties of the defence" in (tmp_path / "adaptive.txt").read_text()


@pytest.mark.parametrize("broken", ["{", '{"dip-2": {"a property of another version": true}}'])
def test_properties_that_cannot_be_read_are_not_taken(
    whole: tuple[AdaptiveReport, Path], tmp_path: Path, broken: str
) -> None:
    report, _ = whole
    write_report(report, tmp_path)
    assert _stored_probes(report.run, tmp_path) == report.probes
    (tmp_path / "adaptive-probes.json").write_text(broken)
    assert _stored_probes(report.run, tmp_path) == {}


def test_a_command_line_becomes_a_setting() -> None:
    arguments = ["--level", "standard", "--epsilon", "8", "2", "--budgets", "100", "300", "--seed", "4", "--dry-run"]
    setting = parse_arguments(None, [*arguments, "--device", "cpu", "--config", "architecture-2", "--norm", "L2"])
    assert (setting.level.name, setting.epsilons, setting.budgets) == ("standard", (2.0, 8.0), (100, 300))
    assert (setting.draws, setting.norm, setting.dry_run) == (tuple(range(4 * 2**14, 4 * 2**14 + 10)), "L2", True)
    assert setting.attackers == (*setting.level.attacks, *setting.level.controls)
    assert parse_arguments(None, ["--device", "cpu"]).level.name == "quick"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attackers", "square"], "the level quick has the attackers transfer, .*; got square"),
        (["--epsilon", "0"], "must be a positive number, got '0'"),
        (["--epsilon", "0.03"], "epsilon must be a number in .* in units of 1/255"),
        (["--seed", str(2**63 - 1)], "--seed must be at most"),
        (["--seed", "1", "2"], "takes one seed here"),
        (["--level", "hard"], "invalid choice: 'hard'"),
        (["--budgets", "300", "100"], "must ascend"),
        (["--report", "--dry-run"], "not allowed with argument --report"),
    ],
)
def test_bad_command_lines_end_in_one_line(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(None, ["--device", "cpu", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line
