"""A measurement from folder to outcomes: what is kept, measured anew or left out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from measuring import CONFIG, Files, tiny_classifier, tiny_defences, tiny_measure, tiny_subject
from test_exports import without_digest
from torch import Tensor, nn

from dipdefense.evaluation import Defence, Run, Setting, Store, StoreError, export, measure, read_export
from dipdefense.evaluation.defences import Outcome, deep_image_prior
from dipdefense.evaluation.measurement import joined
from dipdefense.evaluation.protocol import attack_named, choose, read
from dipdefense.evaluation.report import provenance
from dipdefense.stopping import Variance


def never(*_: object) -> Any:
    raise AssertionError("this was measured already")


def idle() -> list[Defence]:
    """The tiny defences, which fail where there is anything to do."""
    return [dataclasses.replace(defence, classify=never) for defence in tiny_defences()]


def outcomes(run: Run) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    return {r.key[:-1]: (r.prediction, r.confidence, r.loss) for r in run.records}


def test_measure_takes_any_conditions_and_defences(tmp_path: Path) -> None:
    def darken(classifier: nn.Module, images: Tensor, labels: Tensor, **_: object) -> Tensor:
        return images / 2

    def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
        for budget in budgets:
            yield Outcome(budget, classifier(images.round(decimals=budget)), None, ["ok"] * len(images), 0.1)

    setting = Setting(out=tmp_path, seeds=(4, 5), progress=False)
    rounding = Defence("rounding", (1, 2), classify, random=False, settings={"digits": "decimal"})
    run = measure(setting, tiny_subject(), conditions={"dark": darken, "clean": None}, defences=[rounding])
    assert len(run.records) == 5 * 2 * 2
    assert {r.seed for r in run.records} == {4}
    assert [r.position for r in run.records] == [place for place in range(5) for _ in range(4)]
    assert run.configuration["digits"] == "decimal"
    assert {"precision", "backend"} <= tiny_measure(tmp_path, defences=tiny_defences()).configuration.keys()


def test_only_what_is_asked_for_is_measured(tmp_path: Path) -> None:
    def asked(condition: str, defence: str, budget: int, seed: int) -> bool:
        return defence != "randomisation" and (budget, seed) != (4, 1) and (condition == "clean" or defence == "dip")

    setting = Setting(out=tmp_path, seeds=(0, 1), progress=False)
    given = {"conditions": {"clean": None, "noise-10": attack_named("noise-10")}, "defences": tiny_defences()}
    run = measure(setting, tiny_subject(images=2), **given, asked=asked)
    assert {(r.condition, r.defence, r.budget, r.seed) for r in run.records} == {
        ("clean", "none", 0, 0), ("clean", "dip", 2, 0), ("clean", "dip", 4, 0), ("clean", "dip", 2, 1),
        ("noise-10", "dip", 2, 0), ("noise-10", "dip", 4, 0), ("noise-10", "dip", 2, 1),
    }  # fmt: skip
    idled = measure(setting, tiny_subject(images=2), **(given | {"defences": idle()}), asked=asked)
    assert idled == run


def test_one_run_has_one_network_and_a_name_a_defence(tmp_path: Path) -> None:
    wide = deep_image_prior((2,), config=dataclasses.replace(CONFIG, channels=5))
    with pytest.raises(
        ValueError, match=r"one run has one dip, got .*'channels': 4.* measure them one after the other"
    ):
        tiny_measure(tmp_path, defences=[*tiny_defences(), wide])
    with pytest.raises(ValueError, match=r"need different names, got .'dip', 'dip'."):
        tiny_measure(tmp_path, defences=tiny_defences()[-1:] * 2)
    assert not list(tmp_path.iterdir())


def test_an_unrelated_file_less_leaves_all_other_outcomes(tmp_path: Path) -> None:
    first = tiny_measure(tmp_path)
    others = [name for name in Files(tiny_classifier()).ids if name not in {r.image for r in first.records}]
    again = tiny_measure(tmp_path, tiny_subject(Files(tiny_classifier(), without=others[:5])), defences=idle())
    assert again == first


def test_a_chosen_file_less_shifts_the_rest_and_measures_the_next_one_alone(tmp_path: Path) -> None:
    first = tiny_measure(tmp_path)
    gone = next(r.image for r in first.records if r.position == 1)
    shorter = tiny_subject(Files(tiny_classifier(), without=[gone]))
    seen: list[int] = []

    def counted(defence: Defence) -> Defence:
        def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
            seen.append(len(images))
            return defence.classify(classifier, images, budgets, seeds)

        return dataclasses.replace(defence, classify=classify)

    again = tiny_measure(tmp_path, shorter, defences=[counted(d) for d in tiny_defences()], batch=1)
    assert set(seen) == {1}
    assert len(seen) == 2 * 3
    kept = {key: value for key, value in outcomes(first).items() if key[-1] != gone}
    assert kept.items() <= outcomes(again).items()
    assert {(r.position, r.image) for r in again.records} == set(enumerate(shorter.ids))
    export(again, tmp_path / "table2.jsonl")
    assert read_export(tmp_path / "table2.jsonl") == again


def test_a_changed_image_is_measured_anew_and_the_others_are_not(tmp_path: Path) -> None:
    first = tiny_measure(tmp_path)
    changed = Files(tiny_classifier())
    name = first.records[-1].image
    changed.pixels[changed.ids.index(name)] *= 0.999
    subject = tiny_subject(changed)
    assert name in subject.ids
    with pytest.warns(UserWarning, match=f"1 images are not those that outcomes are stored of .{name}"):
        second = tiny_measure(tmp_path, subject)
    same = {key for key, value in outcomes(second).items() if outcomes(first)[key] == value}
    assert {key for key in outcomes(first) if key[-1] != name} <= same
    assert {r.confidence for r in second.records if r.image == name}.isdisjoint(
        {r.confidence for r in first.records if r.image == name}
    )
    # The old ones are still there for the old file, and nothing is measured anew.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny_measure(tmp_path, defences=idle()) == first


LAYOUT_1 = """
CREATE TABLE runs (run TEXT PRIMARY KEY, configuration TEXT NOT NULL) STRICT;
CREATE TABLE sessions (session INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, circumstances TEXT NOT NULL)
    STRICT;
CREATE TABLE records (
    run TEXT NOT NULL REFERENCES runs,
    condition TEXT NOT NULL, defence TEXT NOT NULL, budget INTEGER NOT NULL, seed INTEGER NOT NULL,
    position INTEGER NOT NULL, image TEXT NOT NULL,
    label INTEGER NOT NULL, prediction INTEGER NOT NULL, confidence REAL,
    loss REAL, status TEXT NOT NULL, seconds REAL NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions,
    correct INTEGER GENERATED ALWAYS AS (prediction = label) VIRTUAL,
    PRIMARY KEY (run, condition, defence, budget, seed, image)
) STRICT;
PRAGMA user_version = 1;
"""


def as_layout_1(run: Run, path: Path, *names: str) -> None:
    """Write a store as the first version did, with a run for each set of images."""
    path.unlink(missing_ok=True)
    columns = [f.name for f in dataclasses.fields(run.records[0]) if f.name not in ("content", "iterations")]
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(LAYOUT_1)
        for number, name in enumerate(names, start=1):
            configuration = {k: v for k, v in run.configuration.items() if k != "backend"} | {"images": name}
            database.execute("INSERT INTO runs VALUES (?, ?)", (name, json.dumps(configuration)))
            database.execute("INSERT INTO sessions VALUES (?, ?, ?)", (number, name, '{"commit": "0ld"}'))
            rows = [(name, *(getattr(r, c) if c != "session" else number for c in columns)) for r in run.records]
            marks = ", ".join("?" * len(rows[0]))
            database.executemany(f"INSERT INTO records (run, {', '.join(columns)}) VALUES ({marks})", rows)


@pytest.mark.parametrize("names", [("0123",), ("0123", "4567")], ids=["one run", "two runs that become one"])
def test_a_store_of_layout_1_is_upgraded_resumed_and_says_that_its_images_are_trusted(
    tmp_path: Path, names: Sequence[str]
) -> None:
    first = tiny_measure(tmp_path / "new", batch=1)
    old = tmp_path / "old"
    old.mkdir()
    as_layout_1(first, old / "outcomes.sqlite", *names)
    again = tiny_measure(old, defences=idle())
    assert outcomes(again) == outcomes(first)
    assert again.configuration == first.configuration
    assert [r.content for r in again.records] == [r.content for r in first.records]
    assert list(again.sessions.values()) == [
        {"commit": "0ld", "images": "trusted by name, stored without a digest of their pixels"}
    ]
    assert "trusted by name" in "\n".join(provenance(again))
    # To the bit with one image a batch: the fifth has been through a batch of its own before.
    more, fresh = (tiny_measure(folder, tiny_subject(images=6), batch=1) for folder in (old, tmp_path / "fresh"))
    assert outcomes(more) == outcomes(fresh)


def test_a_store_of_layout_2_is_upgraded_and_resumed(tmp_path: Path) -> None:
    first = tiny_measure(tmp_path)
    path = tmp_path / "outcomes.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE records DROP COLUMN iterations")
        database.execute("PRAGMA user_version = 2")
    again = tiny_measure(tmp_path, defences=idle())
    assert again.records == first.records
    assert dump(path)[-1] == "(3,)"


def test_iterations_of_stopped_fits_are_kept_and_exported(tmp_path: Path) -> None:
    rule = Variance(warm_up=1, patience=2)
    stopping = deep_image_prior((4, 30), config=CONFIG, stopping=rule)
    run = tiny_measure(tmp_path, defences=[stopping])
    assert run.configuration["stopping"] == rule.settings
    early = [record.iterations for record in run.records if record.budget == 30]
    assert all(iterations is not None and 3 <= iterations <= 30 for iterations in early)
    assert min(early) < 30
    export(run, tmp_path / "stopped.jsonl")
    assert read_export(tmp_path / "stopped.jsonl").records == run.records
    fixed = tiny_measure(tmp_path, defences=tiny_defences((4, 30)))
    assert {record.iterations for record in fixed.records} == {None}
    assert "stopping" not in fixed.configuration
    export(fixed, tmp_path / "fixed.jsonl")
    header, *records = (tmp_path / "fixed.jsonl").read_text().splitlines()
    assert records
    # Not the whole header: the command that it names may contain the word.
    assert not any("iterations" in text for text in (json.dumps(json.loads(header)["configuration"]), *records))


def test_a_family_shares_its_seeds(tmp_path: Path) -> None:
    seen: dict[str, list[Sequence[int]]] = {}

    def defence(name: str, family: str) -> Defence:
        def classify(classifier: nn.Module, images: Tensor, budgets: Sequence[int], seeds: Sequence[int]):
            seen.setdefault(name, []).append(seeds)
            yield Outcome(1, classifier(images), None, ["ok"] * len(images), 0.1)

        return Defence(name, (1,), classify, family=family)

    tiny_measure(tmp_path, defences=[defence("dip", ""), defence("dip-stopped", "dip"), defence("other", "")])
    assert seen["dip"] == seen["dip-stopped"] != seen["other"]


def test_an_upgrade_that_is_cut_short_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_measure(tmp_path)
    path = tmp_path / "outcomes.sqlite"
    as_layout_1(first, path, "0123", "4567")
    whole = dump(path)
    execute = Store._execute
    for allowed in range(5, 20):
        left = allowed

        def cut(self: Store, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return execute(self, statement, *parameters)

        monkeypatch.setattr(Store, "_execute", cut)
        with pytest.raises(KeyboardInterrupt):
            Store(path)
        assert dump(path) == whole
    monkeypatch.undo()
    Store(path).__exit__(None, None, None)
    assert "earlier" not in str(dump(path))


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [*database.iterdump(), str(database.execute("PRAGMA user_version").fetchone())]


def test_an_old_export_is_resumed_without_measuring_anything_anew(tmp_path: Path) -> None:
    first = tiny_measure(tmp_path / "new")
    old = tmp_path / "old" / "table2.jsonl"
    old.parent.mkdir()
    export(first, old)
    without_digest(old)
    head, *lines = old.read_text().split("\n")
    configuration = {k: v for k, v in first.configuration.items() if k != "backend"} | {"images": "0123"}
    old.write_text("\n".join([json.dumps(json.loads(head) | {"configuration": configuration}), *lines]))
    again = tiny_measure(old.parent, defences=idle())
    assert outcomes(again) == outcomes(first)


def test_a_broken_export_beside_a_whole_store_is_a_warning_and_without_a_store_an_error(tmp_path: Path) -> None:
    first = tiny_measure(tmp_path)
    broken = tmp_path / "table2.jsonl"
    broken.write_text("")
    with pytest.warns(UserWarning, match=r"table2\.jsonl, line 1: .* The outcomes come from .*outcomes\.sqlite"):
        assert tiny_measure(tmp_path, defences=idle()) == first
    (tmp_path / "outcomes.sqlite").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"table2\.jsonl, line 1: "):
            tiny_measure(tmp_path)
        assert not (tmp_path / "outcomes.sqlite").exists()
    with Store(tmp_path / "outcomes.sqlite"), pytest.raises(ValueError, match=r"table2\.jsonl, line 1: "):
        tiny_measure(tmp_path)


def test_a_store_that_cannot_be_used_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "outcomes.sqlite").write_text("x" * 5000)
    with pytest.raises(StoreError, match=r"outcomes\.sqlite: file is not a database"):
        tiny_measure(tmp_path)


def test_a_bad_file_is_skipped_named_and_counted(tmp_path: Path) -> None:
    good = tiny_measure(tmp_path / "good", tiny_subject(images=6))
    data = Files(tiny_classifier())
    data.bad = {next(r.image for r in good.records if r.position == 2)}
    (name,) = data.bad
    with pytest.warns(UserWarning, match=f"/data/{name} cannot be read as an image: truncated; it is skipped"):
        subject = tiny_subject(data, images=5)
    assert subject.chosen.skipped == (name,)
    run = tiny_measure(tmp_path / "bad", subject)
    assert run.skipped == (name,)
    assert f"1 images could not be read and were skipped: {name}" in list(provenance(run))
    # The rest is as it is without the bad file, to rounding in another batch.
    assert {r.image for r in run.records} == {r.image for r in good.records} - data.bad
    assert subject.ids == tiny_subject(Files(tiny_classifier(), without=[name])).ids
    export(run, tmp_path / "table2.jsonl")
    assert read_export(tmp_path / "table2.jsonl").skipped == (name,)


def test_bad_files_beyond_the_last_chosen_image_do_not_count() -> None:
    data = Files(tiny_classifier())
    late = tiny_subject(images=30).ids[-1]
    data.bad = {late}
    with pytest.warns(UserWarning, match="it is skipped"):
        assert choose(data, tiny_classifier(), images=5, batch=60).skipped == ()


def test_too_few_readable_images_are_refused_with_the_number_of_bad_ones() -> None:
    data = Files(tiny_classifier(), 9)
    data.bad = set(data.ids)
    refused = "0 are classified correctly, and 9 could not be read; ask for more"
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match=refused):
        choose(data, tiny_classifier(), images=3)
    assert read(data, [0, 1])[:2] == (None, [])


def test_a_file_that_turns_bad_during_the_run_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    data = Files(tiny_classifier())
    subject = tiny_subject(data)
    lost, changed = subject.ids[1], subject.ids[4]
    data.bad = {lost}
    data.pixels[data.ids.index(changed)] *= 0.9
    with pytest.warns(UserWarning, match="it is left out") as warned:
        run = tiny_measure(tmp_path, subject)
    texts = {str(warning.message) for warning in warned}
    assert f"{changed} has changed since it was chosen; it is left out" in texts
    assert set(run.skipped) == {lost, changed}
    assert {r.image for r in run.records} == set(subject.ids) - {lost, changed}
    assert {r.position for r in run.records} == {0, 1, 2}
    data.bad = set(data.ids)
    refused = "none of the chosen images can be read any more"
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match=refused):
        tiny_measure(tmp_path / "other", subject)


def test_runs_are_joined_where_a_file_turns_bad_between_them(tmp_path: Path) -> None:
    data = Files(tiny_classifier())
    subject = tiny_subject(data)
    first = tiny_measure(tmp_path, subject)
    data.bad = {subject.ids[1]}
    with pytest.warns(UserWarning, match="it is left out"):
        second = tiny_measure(tmp_path, subject, seeds=(1,))
    run = joined([first, second])
    assert {(r.image, r.position) for r in run.records} == {(name, at) for at, name in enumerate(subject.ids)}
    export(run, tmp_path / "table2.jsonl")
    assert read_export(tmp_path / "table2.jsonl").records == run.records


def test_the_digest_of_an_image_is_of_its_pixels_and_label() -> None:
    classifier = tiny_classifier()
    one, same = (choose(Files(classifier), classifier, images=3) for _ in range(2))
    assert one.contents == same.contents
    assert len(set(one.contents)) == 3
