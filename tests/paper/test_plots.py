"""The figures of made-up records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from measuring import made_up
from scipy.stats import spearmanr

from dipdefense.evaluation.records import Run
from dipdefense.evaluation.statistics import wilson
from dipdefense.paper.plots import accuracy_by_budget, recovery_by_confidence
from dipdefense.paper.report import write_report
from dipdefense.paper.tables import CONDITIONS as EVERY_CONDITION
from dipdefense.paper.tables import table_cells

CONDITIONS = ("clean", "fgsm-5", "bi-10")
BUDGETS = (250, 500, 750, 1000)


@pytest.fixture
def run() -> Run:
    """Confidence rises from image to image, but falls under FGSM."""
    made = made_up(images=9, budgets=BUDGETS, conditions=CONDITIONS)
    records = [
        dataclasses.replace(r, confidence=(9 - r.position if r.condition == "fgsm-5" else 1 + r.position) / 10)
        for r in made.records
    ]
    return Run(made.configuration, tuple(records), made.sessions)


def test_accuracy_by_budget_has_a_curve_a_condition_and_the_undefended_accuracy(run: Run) -> None:
    (axes,) = accuracy_by_budget(run).axes
    curves = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert sorted(curves) == ["BI ε=10", "FGSM ε=5", "clean", "clean, no defence"]
    cells = {(c.condition, c.budget): c for c in table_cells(run) if c.defence == "dip"}
    assert list(curves["BI ε=10"].get_xdata()) == list(BUDGETS)
    assert list(curves["BI ε=10"].get_ydata()) == [100 * cells["bi-10", budget].accuracy for budget in BUDGETS]
    assert len(axes.collections) == 3
    # The band's outline has its ends at every budget.
    outline = {tuple(point) for point in axes.collections[2].get_paths()[0].vertices.round(6).tolist()}
    for end in wilson(cells["bi-10", 750].accuracy, 9):
        assert (750, round(100 * end, 6)) in outline
    assert curves["clean, no defence"].get_linestyle() == "--"
    assert set(curves["clean, no defence"].get_ydata()) == {100}
    attacked = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert attacked == [100 * c.accuracy for c in table_cells(run) if c.defence == "none" and c.condition != "clean"]
    assert axes.figure.get_suptitle() == "Accuracy against the budget, n = 9 (defence-unaware attacks)"
    for words in ("REDUCED SETTING", "efficientnet-lite0"):
        assert words in axes.get_title(loc="left")


def test_no_two_conditions_look_alike() -> None:
    (axes,) = accuracy_by_budget(made_up(images=2, budgets=BUDGETS, conditions=tuple(EVERY_CONDITION))).axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == len(BUDGETS)]
    assert len(curves) == len(EVERY_CONDITION)
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == len(EVERY_CONDITION)


def test_recovery_by_confidence_has_a_panel_a_condition_and_a_point_an_image(run: Run) -> None:
    figure = recovery_by_confidence(run)
    panels = {axes.get_title().split(",")[0]: axes for axes in figure.axes}
    assert list(panels) == ["clean", "FGSM ε=5", "BI ε=10"]
    points = {title: axes.collections[0] for title, axes in panels.items()}
    clean = {r.image: r.confidence for r in run.records if (r.condition, r.defence) == ("clean", "none")}
    expected = [
        [clean[r.image], r.confidence]
        for r in run.records
        if (r.condition, r.defence, r.budget) == ("fgsm-5", "dip", 1000)
    ]
    assert points["FGSM ε=5"].get_offsets().tolist() == expected
    p = spearmanr(range(9), range(9)).pvalue
    assert panels["clean"].get_title() == f"clean, n = 9\nρ = 1.00, p = {p:.2g}"
    assert "ρ = -1.00" in panels["FGSM ε=5"].get_title()
    for title, condition in (("clean", "clean"), ("BI ε=10", "bi-10")):
        filled = (points[title].get_facecolors()[:, :3] != 1).any(axis=1).tolist()
        correct = [r.correct for r in run.records if (r.condition, r.defence, r.budget) == (condition, "dip", 1000)]
        assert filled == correct
    assert figure.get_suptitle() == "Recovery against the clean image's confidence, n = 9"
    (below,) = figure.subfigs
    for words in ("REDUCED SETTING", "efficientnet-lite0", "defence-unaware"):
        assert words in " ".join(below.get_suptitle().split())
    assert "DIP 1000" in below.get_supylabel()


def test_labels_of_a_single_row_do_not_overlap(run: Run) -> None:
    figure = recovery_by_confidence(run)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (below,) = figure.subfigs
    caption, beside = (
        next(text for text in below.texts if text.get_text() == words).get_window_extent(renderer)
        for words in (below.get_suptitle(), below.get_supylabel())
    )
    assert not caption.overlaps(beside)


def test_recovery_leaves_the_controls_out_and_is_at_a_budget_that_tables_show() -> None:
    budgets = (*range(50, 1001, 50), 1020)
    figure = recovery_by_confidence(made_up(images=2, budgets=budgets, conditions=("clean", *ATTACKS, "noise-10")))
    assert [axes.get_title().split(",")[0] for axes in figure.axes] == ["clean", "FGSM ε=2", "BI ε=10", "LLCI ε=10"]
    assert "DIP 1000" in figure.subfigs[0].get_supylabel()


ATTACKS = ("fgsm-2", "bi-10", "llci-10")


def test_a_confidence_that_is_not_known_is_left_out(run: Run) -> None:
    unknown = [
        dataclasses.replace(r, confidence=None)
        if (r.defence, r.position, r.condition) in {("dip", 0, "bi-10"), ("none", 1, "clean")}
        else r
        for r in run.records
    ]
    panels = recovery_by_confidence(Run(run.configuration, tuple(unknown), run.sessions)).axes
    assert [len(axes.collections[0].get_offsets()) for axes in panels] == [8, 8, 7]


@pytest.mark.parametrize("lacking", ["clean images", "undefended images"])
def test_recovery_is_left_out_where_the_clean_confidence_is_not_known(run: Run, lacking: str, tmp_path: Path) -> None:
    rest = tuple(
        r for r in run.records if (r.condition == "bi-10" if lacking == "clean images" else r.defence == "dip")
    )
    without = Run(run.configuration, rest, run.sessions)
    names = [path.name for path in write_report(without, table=2, folder=tmp_path)]
    assert names == ["table2.txt", "table2.md", "table2.csv", "table2.png", "table2-budgets.png", "table2.jsonl"]
    with pytest.raises(ValueError, match="needs the undefended clean images"):
        recovery_by_confidence(without)
