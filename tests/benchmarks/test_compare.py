"""Two records beside each other, image by image."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from measuring import CONFIG, CONFIGURATION, record

from dipdefense.evaluation import Run, export

sys.path.insert(0, str(ROOT / "benchmarks"))

import compare as script

OTHER = CONFIGURATION | {"dip": dataclasses.replace(CONFIG, reduction=2).to_json(), "backend": "native"}


def run(right: dict[str, str], *, budget: int = 4, configuration: dict = CONFIGURATION, **changes: object) -> Run:
    """A run by image: "+" for correct and "-" for wrong, clean and under FGSM."""
    records = [
        record(
            image,
            condition=condition,
            budget=budget,
            prediction=3 if sign == "+" else 4,
            content=image,
            position=position,
            **changes,
        )
        for position, (image, signs) in enumerate(right.items())
        for condition, sign in zip(("clean", "fgsm-5"), signs, strict=True)
    ]
    return Run({"backend": "torch"} | configuration, tuple(records), {0: {}})


FIRST, SECOND = run({"a": "++", "b": "+-", "c": "--"}, configuration=OTHER), run({"a": "+-", "b": "--", "d": "++"})


def test_the_table_has_what_both_sides_have() -> None:
    table = list(script.rows(script.outcomes([FIRST], 4), script.outcomes([SECOND], 4)))
    assert [row[0] for row in table[1:]] == ["clean", "FGSM ε=5", "mean"]
    assert table[1][1:] == ["2", "100.0 [34.2, 100.0]", "50.0 [9.5, 90.5]", "1 : 0", "1", "+50.0 [-27.3, +90.5]"]
    assert table[3][1:] == ["2", "75.0 [19.8, 97.3]", "25.0 [2.7, 80.2]", "2 : 0", "0.5", "+50.0"]


def test_several_files_of_a_side_are_pooled() -> None:
    more = run({"d": "-+"}, configuration=OTHER)
    table = list(script.rows(script.outcomes([FIRST, more], 4), script.outcomes([SECOND], 4)))
    assert [row[1] for row in table[1:]] == ["3"] * 3
    assert table[2][4] == "1 : 0"
    with pytest.raises(ValueError, match="two records of one side have the image a"):
        script.outcomes([FIRST, SECOND], 4)


def test_fewer_conditions_may_have_more_images() -> None:
    first = script.outcomes([FIRST, run({"d": "--"}, configuration=OTHER)], 4)
    del first["fgsm-5"][script.Image("d", "d")]
    second = script.outcomes([SECOND], 4)
    assert [row[:2] for row in script.rows(first, second)][1:] == [["clean", "2"], ["FGSM ε=5", "2"], ["mean", "2"]]
    assert [row[:2] for row in script.rows(first, second, ["clean"])][1:] == [["clean", "3"], ["mean", "3"]]


def test_seeds_are_averaged() -> None:
    twice = dataclasses.replace(FIRST, records=FIRST.records + run({"a": "--"}, seed=1).records)
    assert set(script.outcomes([twice], 4)["clean"].values()) == {0.5, 1, 0}


def test_an_image_that_was_changed_is_another() -> None:
    changed = [dataclasses.replace(each, content="other") for each in SECOND.records]
    with pytest.raises(ValueError, match="no image in common"):
        list(script.rows(script.outcomes([FIRST], 4), script.outcomes([Run(CONFIGURATION, tuple(changed), {})], 4)))


def test_the_report_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for each, file in zip((FIRST, SECOND), files, strict=True):
        export(each, file)
    script.main(["--first", str(files[0]), "--second", str(files[1]), "--budgets", "4", "4"])
    text = capsys.readouterr().out
    assert '- first: 4 iterations, backend "native", fp32, reduction 2\n' in text
    assert '- second: 4 iterations, backend "torch", fp32, reduction 1\n' in text


@pytest.mark.parametrize(
    ("first", "budgets", "message"),
    [
        (FIRST, ("5", "4"), "no reconstructions at 5 iterations"),
        (FIRST, ("4", "4", "--conditions", "bi-10"), "do not both have the condition bi-10"),
        (run({"a": "++"}, configuration=OTHER | {"weights": "4567"}), ("4", "4"), "of 2 classifiers"),
        (run({"e": "++"}, configuration=OTHER), ("4", "4"), "no image in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: Run, budgets: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for each, file in zip((first, SECOND), files, strict=True):
        export(each, file)
    with pytest.raises(SystemExit):
        script.main(["--first", str(files[0]), "--second", str(files[1]), "--budgets", *budgets])
    assert message in capsys.readouterr().err
