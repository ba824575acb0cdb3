"""What the figures draw of made-up records."""

from __future__ import annotations

import dataclasses

import pytest
from scipy.stats import spearmanr
from test_report import made_up

from dipdefense.evaluation.figures import accuracy_by_budget, recovery_by_confidence
from dipdefense.evaluation.statistics import summarise
from dipdefense.evaluation.store import Run

CONDITIONS = ("clean", "fgsm-5", "bi-10")
BUDGETS = (250, 500, 750, 1000)


@pytest.fixture
def run() -> Run:
    """The clean confidence rises from image to image; behind the defence it falls under FGSM."""
    made = made_up(images=9, budgets=BUDGETS, conditions=CONDITIONS)
    records = [
        dataclasses.replace(r, confidence=(9 - r.position if r.condition == "fgsm-5" else 1 + r.position) / 10)
        for r in made.records
    ]
    return Run(made.configuration, tuple(records), made.sessions)


def test_accuracy_by_budget_has_a_curve_a_condition_and_the_undefended_accuracy(run: Run) -> None:
    (axes,) = accuracy_by_budget(run).axes
    curves = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(curves) == ["clean", "FGSM ε=5", "BI ε=10"]
    cells = {(c.condition, c.budget): c for c in summarise(run.records) if c.defence == "dip"}
    assert list(curves["BI ε=10"].get_xdata()) == list(BUDGETS)
    assert list(curves["BI ε=10"].get_ydata()) == [100 * cells["bi-10", budget].accuracy for budget in BUDGETS]
    assert len(axes.collections) == 3
    undefended = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert undefended == [100 * c.accuracy for c in summarise(run.records) if c.defence == "none"]
    assert "defence-unaware" in axes.figure.get_suptitle()
    assert "REDUCED SETTING" in axes.get_title(loc="left")


def test_recovery_by_confidence_has_a_point_an_image_and_condition(run: Run) -> None:
    (axes,) = recovery_by_confidence(run).axes
    drawn = [collection for collection in axes.collections if len(collection.get_offsets())]
    assert [len(collection.get_offsets()) for collection in drawn] == [9, 9, 9]
    labels = {c.get_label().split(" (")[0]: c.get_label() for c in axes.collections if not len(c.get_offsets())}
    assert list(labels) == ["clean", "FGSM ε=5", "BI ε=10"]
    assert "ρ = 1.00" in labels["clean"]
    assert f"p = {spearmanr(range(9), range(9)).pvalue:.2g}, n = 9" in labels["clean"]
    assert "ρ = -1.00" in labels["FGSM ε=5"]
    filled = (drawn[0].get_facecolors()[:, :3] != 1).any(axis=1).tolist()
    correct = [r.correct for r in run.records if (r.condition, r.defence, r.budget) == ("clean", "dip", 1000)]
    assert filled == correct
    assert "DIP 1000" in axes.get_ylabel()


def test_a_confidence_that_is_not_known_is_left_out(run: Run) -> None:
    unknown = [
        dataclasses.replace(r, confidence=None) if (r.defence, r.position, r.condition) == ("dip", 0, "bi-10") else r
        for r in run.records
    ]
    (axes,) = recovery_by_confidence(Run(run.configuration, tuple(unknown), run.sessions)).axes
    assert [len(c.get_offsets()) for c in axes.collections if len(c.get_offsets())] == [9, 9, 8]
