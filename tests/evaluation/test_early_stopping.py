"""Rules and fixed budgets judged on one fit, each as in a run of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from measuring import CONFIG, CONFIGURATION, record, tiny_measure

from dipdefense.evaluation import Run, deep_image_prior
from dipdefense.evaluation import early_stopping as judged
from dipdefense.evaluation.early_stopping_report import CONDITIONS, Compared, compare_rules, write_report
from dipdefense.stopping import Trend, Variance

RULES = {
    "variance": Variance(warm_up=4, patience=5, decay=0.5),
    "trend": Trend(warm_up=2, patience=1, smoothing=0.9),
}
BUDGETS = (4, 20, 40)


def run(folder: Path, **settings) -> Run:
    return tiny_measure(folder, defences=judged.one_fit(BUDGETS, config=CONFIG, rules=RULES), **settings)


def told(run: Run, defence: str) -> dict:
    return {
        (r.condition, r.image, r.budget): (r.prediction, r.confidence, r.loss, r.iterations)
        for r in run.records
        if r.defence == defence
    }


def test_fixed_budgets_are_those_of_a_run_without_rules(tmp_path: Path) -> None:
    fixed = tiny_measure(tmp_path / "fixed", defences=[deep_image_prior(BUDGETS, config=CONFIG)])
    assert told(run(tmp_path / "one"), "dip") == told(fixed, "dip")


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_has_the_outcomes_of_a_run_that_it_stops(name: str, reduction: int, tmp_path: Path) -> None:
    rule, config = RULES[name], dataclasses.replace(CONFIG, reduction=reduction)
    stopped = tiny_measure(tmp_path / "alone", defences=[deep_image_prior((40,), config=config, stopping=rule)])
    at_once = judged.one_fit(BUDGETS, config=config, rules=RULES)
    one = told(tiny_measure(tmp_path / "one", defences=at_once), name)
    assert len({found[-1] for found in one.values()}) > 1
    for key, (prediction, confidence, loss, iterations) in told(stopped, "dip").items():
        assert one[key][0] == prediction
        assert one[key][1] == pytest.approx(confidence, rel=1e-3)
        assert one[key][2] == pytest.approx(loss, rel=1e-3)
        assert one[key][3] == iterations


def test_a_batch_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    reconstruct = judged.reconstruct
    monkeypatch.setattr(judged, "reconstruct", lambda images, **rest: (fits.append(1), reconstruct(images, **rest))[1])
    run(tmp_path)
    pieces = 3 * 2  # batches of two of five images, under two conditions
    assert len(fits) == pieces
    run(tmp_path)
    assert len(fits) == pieces
    run(tmp_path / "seeds", seeds=(0, 1, 2))
    assert len(fits) == pieces + 3 * pieces


def test_what_a_fit_does_after_its_rule_has_ended_it_is_not_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconstruct = judged.reconstruct

    def diverging(images, **rest):
        return dataclasses.replace(reconstruct(images, **rest), status=("diverged",) * len(images))

    monkeypatch.setattr(judged, "reconstruct", diverging)
    found = {(one.iterations < 40, one.status) for one in run(tmp_path).records if one.defence in RULES}
    assert found == {(True, "ok"), (False, "diverged")}


def made_up(rule_right: int, budget_right: int) -> Run:
    """Of twelve images the first are right at budget 20, the last under the rule."""
    records = []
    for place in range(12):
        for defence, budget, right, iterations in (
            ("dip", 10, False, None),
            ("dip", 20, place < budget_right, None),
            ("late", 20, place >= 12 - rule_right, 12 + place),
        ):
            records.append(
                record(
                    f"{place}", condition="clean", defence=defence, budget=budget, position=place, label=1,
                    prediction=int(right), iterations=iterations,
                )
            )  # fmt: skip
    return Run(CONFIGURATION, tuple(records), {0: {"commit": "c0ffee"}})


VERDICTS = {
    "above": (12, 2, "Does late beat the best fixed budget, 20? yes: 100.0 % against 16.7 %"),
    "below": (0, 12, "Does late beat the best fixed budget, 20? no, it is below: 0.0 % against 100.0 %"),
    "not decided": (6, 5, "no, not decided: 50.0 % against 41.7 % on average; 6 : 5 images (sign test"),
    "as costly": (12, 2, "Does late beat the fixed budget of its cost, 20? yes"),
}


@pytest.mark.parametrize(("rule_right", "budget_right", "words"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_is_of_a_paired_test(rule_right: int, budget_right: int, words: str, tmp_path: Path) -> None:
    (text, *_) = write_report(made_up(rule_right, budget_right), tmp_path)
    assert words in text.read_text()


def test_a_rule_that_is_lower_on_average_does_not_win_by_more_images(tmp_path: Path) -> None:
    """Of three conditions, the rule gains one on 20 images and loses all on 8."""
    records = []
    for place in range(28):
        for number, condition in enumerate(CONDITIONS):
            fixed = number < 2 if place < 20 else True
            rule = place < 20
            for defence, budget, right in (("dip", 20, fixed), ("late", 20, rule)):
                records.append(
                    record(
                        f"{place}", condition=condition, defence=defence, budget=budget, position=place, label=1,
                        prediction=int(right), iterations=20 if defence == "late" else None,
                    )
                )  # fmt: skip
    write_report(Run(CONFIGURATION, tuple(records), {0: {"commit": "c0ffee"}}), tmp_path)
    text = (tmp_path / "stopping.md").read_text()
    assert "Does late beat the best fixed budget, 20? no, not decided: 71.4 % against 76.2 %" in text
    assert "20 : 8 images (sign test, p = 0.036" in text


def test_iterations_are_of_the_fits(tmp_path: Path) -> None:
    compared = Compared.of(made_up(12, 2))
    assert compared.best == 20
    assert compared.as_costly("late") == 20
    assert "| late | 18 [12, 23], 67% | 18 [12, 23], 67% |" in write_report(made_up(12, 2), tmp_path)[0].read_text()


def test_a_real_run_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_report(run(tmp_path), tmp_path)
    assert [path.name for path in paths] == ["stopping.md", "stopping.png", "stopping.jsonl"]
    text = paths[0].read_text()
    assert "REDUCED SETTING, NOT THE PAPER'S: 40 iterations at most instead of 1000; " in text
    assert all(f"Does {name} beat the best fixed budget" in text for name in RULES)


def test_conditions_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        compare_rules(description="", arguments=["--device", "cpu", "--conditions", "clean", "dark"])
    assert exit_.value.code == 2
    assert "--conditions takes clean and attacks such as fgsm-5, got dark" in capsys.readouterr().err
