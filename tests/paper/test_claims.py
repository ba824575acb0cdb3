"""The paper's claims on outcomes made for every verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from measuring import made_up

from dipdefense.evaluation.statistics import Cell, compare, holm
from dipdefense.paper.claims import (
    CONFIRMED,
    CONTRADICTED,
    LARGER,
    SAME,
    SMALLER,
    UNDECIDED,
    Comparison,
    Finding,
    decide,
    findings,
)
from dipdefense.paper.published import CLAIMS
from dipdefense.paper.report import as_markdown, as_text
from dipdefense.paper.tables import ADVERSARIES, table_cells

ALL = ("clean", *ADVERSARIES, "average")


def cell(right: int, *, condition: str = "fgsm-2", defence: str = "dip", budget: int = 1000, n: int = 40) -> Cell:
    """The first ``right`` images of n are correct."""
    return Cell(condition, defence, budget, {0: {str(image): float(image < right) for image in range(n)}}, 1.0)


def verdict(*pairs: tuple[int, int], missing: Sequence[str] = ()) -> str:
    names = ("fgsm-2", "fgsm-5", "fgsm-10")
    return decide(
        "A claim.",
        [
            Comparison(name, cell(high, condition=name), cell(low, condition=name, defence="none", budget=0))
            for name, (high, low) in zip(names, pairs, strict=False)
        ],
        missing=missing,
    ).verdict


def columns(right: Mapping[tuple[str, int], int], conditions: Sequence[str] = ALL, n: int = 40) -> list[Cell]:
    """As many correct images in every condition, by defence and budget."""
    return [
        cell(count, condition=condition, defence=defence, budget=budget, n=n)
        for condition in conditions
        for (defence, budget), count in right.items()
    ]


def found(cells: Sequence[Cell]) -> dict[str, Finding]:
    """The findings by the name of their claim."""
    statements = {claim.statement: name for name, claim in CLAIMS.items()}
    return {statements[finding.claim.split(" (")[0]]: finding for finding in findings(cells)}


# Of images on which two ways differ, 6 : 0 has p = 0.031 and 5 : 0 p = 0.0625; three tests triple the least.
@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(16, 10)], CONFIRMED),
        ([(15, 10)], UNDECIDED),
        ([(10, 16)], CONTRADICTED),
        ([(10, 10)], UNDECIDED),
        ([(30, 10), (30, 10), (30, 10)], CONFIRMED),
        ([(30, 10), (30, 10), (16, 10)], CONFIRMED),
        ([(30, 10), (16, 10), (16, 10)], UNDECIDED),
        ([(30, 10), (30, 10), (10, 30)], CONTRADICTED),
    ],
)
def test_verdicts(pairs: list[tuple[int, int]], expected: str) -> None:
    assert verdict(*pairs) == expected


def test_a_claim_of_every_attack_is_not_confirmed_by_some() -> None:
    assert verdict((30, 10), missing=("bi-10",)) == UNDECIDED
    assert verdict((10, 30), missing=("bi-10",)) == CONTRADICTED
    confirmed = decide("A claim.", [Comparison("fgsm-2", cell(30), cell(10))], missing=("bi-10", "llci-10"))
    assert confirmed.details[0].endswith(": confirmed")
    assert confirmed.details[1] == "not measured: BI ε=10, LLCI ε=10"


def test_holm_is_the_published_procedure() -> None:
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_averages_are_compared_image_by_image() -> None:
    first = Cell("average", "dip", 1000, {0: {"a": 0.6, "b": 0.2, "c": 0.4}}, 1.0)
    second = Cell("average", "dip", 500, {0: {"a": 0.4, "b": 0.4, "c": 0.4}}, 1.0)
    assert compare(first, second)[:2] == (1, 1)


@pytest.mark.parametrize(("rest", "expected"), [(0.4, CONFIRMED), (1.0, UNDECIDED)], ids=["agree", "disagree"])
def test_more_images_with_a_lower_average_decide_nothing(rest: float, expected: str) -> None:
    """30 of 40 images withstand more of the attacks (0.6 against 0.5), p = 0.002.

    The other 10 withstand fewer, by a little or by much.
    """
    first = Cell("average", "dip", 1000, {0: {str(i): 0.6 if i < 30 else 0.2 for i in range(40)}}, 1.0)
    second = Cell("average", "none", 0, {0: {str(i): 0.5 if i < 30 else rest for i in range(40)}}, 1.0)
    assert compare(first, second).p < 0.05
    assert decide("A claim.", [Comparison("average", first, second)]).verdict == expected


RISING = {
    ("none", 0): 10,
    ("randomisation", 1): 8,
    ("randomisation", 30): 9,
    ("dip", 500): 16,
    ("dip", 750): 24,
    ("dip", 1000): 32,
}
# What every claim comes to where each step is 8 : 0 (p = 0.008 alone, 0.039 of five), and where all are turned about.
AS_CLAIMED = {
    "cost": CONTRADICTED,
    "gain": CONFIRMED,
    "randomisation": CONFIRMED,
    "randomisation, other attacks": CONFIRMED,
    "randomisation, 30 passes": CONFIRMED,
    "iterations, clean": CONFIRMED,
    "iterations, attacked": CONFIRMED,
    "iterations, fgsm-10": CONTRADICTED,
    "average": CONFIRMED,
    "iterations, average": CONFIRMED,
}


@pytest.mark.parametrize("turned", [False, True], ids=["as claimed", "turned about"])
def test_every_claim_is_of_the_cells_it_speaks_of(turned: bool) -> None:
    right = {column: 40 - count if turned else count for column, count in RISING.items()}
    results = found(columns(right))
    other = {CONFIRMED: CONTRADICTED, CONTRADICTED: CONFIRMED}
    expected = {name: other[verdict] if turned else verdict for name, verdict in AS_CLAIMED.items()}
    assert {name: results[name].verdict for name in expected} == expected
    assert results.keys() == CLAIMS.keys()
    titles = {name: [detail.split(": ")[0] for detail in results[name].details] for name in results}
    fgsm, iterative = ["FGSM ε=2", "FGSM ε=5", "FGSM ε=10"], ["BI ε=10", "LLCI ε=10"]
    assert titles["randomisation"] == fgsm
    assert titles["randomisation, other attacks"] == iterative
    assert titles["gain"] == titles["randomisation, 30 passes"] == fgsm + iterative
    assert titles["iterations, attacked"] == fgsm[:2] + iterative
    opponents = {
        name: {detail.split(" against ")[1].split(" [")[0].rsplit(" ", 1)[0] for detail in results[name].details}
        for name in expected
    }
    assert opponents["randomisation"] == opponents["randomisation, other attacks"] == {"randomisation ×1"}
    assert opponents["randomisation, 30 passes"] == {"randomisation ×30"}
    assert opponents["average"] == {"randomisation ×1"}
    assert opponents["gain"] == {"no defence"}
    assert opponents["iterations, average"] == {"DIP 500", "DIP 750"}


def test_nothing_is_decided_where_nothing_differs() -> None:
    results = found(columns(dict.fromkeys(RISING, 20)))
    assert {results[name].verdict for name in AS_CLAIMED} == {UNDECIDED}


def test_comparisons_are_of_the_papers_first_and_last_budget_or_the_smallest_and_largest() -> None:
    counts = {("dip", budget): 5 + budget // 50 for budget in range(50, 1251, 50)}
    assert "DIP 1000 62.5 " in found(columns(counts))["iterations, clean"].details[0]
    assert "against DIP 500 37.5 " in found(columns(counts))["iterations, clean"].details[0]
    best = found(columns(counts))["iterations, average"].details
    assert [detail.split(" against ")[1].split(" ")[1] for detail in best] == ["500", "750"]
    few = found(columns({("dip", 100): 5, ("dip", 200): 15, ("dip", 300): 25}))
    assert "DIP 300 62.5 " in few["iterations, clean"].details[0]
    assert "against DIP 100 12.5 " in few["iterations, clean"].details[0]
    assert "iterations, clean" not in found(columns({("none", 0): 40, ("dip", 300): 25}))


def test_the_fall_and_the_average_are_held_against_the_published_numbers() -> None:
    # Published: falls of 32.5, 24.7 and 20.4 points; averages of 62.3, 68.9 and 70.6 %.
    counts = {("none", 0): 100, ("dip", 500): 50, ("dip", 750): 75, ("dip", 1000): 90}
    results = found(columns(counts, n=100))
    falls = results["published cost"].details
    assert [detail.rsplit(": ", 1)[1] for detail in falls] == [LARGER, SAME, SMALLER]
    # Wilson's interval of 90 of 100 is 82.6 to 94.5 %.
    assert falls[2] == f"clean: DIP 1000 10.0 [5.5, 17.4], published 20.4: {SMALLER}"
    assert results["published cost"].verdict == SMALLER
    averages = results["published average"].details
    assert [detail.rsplit(": ", 1)[1] for detail in averages] == [SMALLER, SAME, LARGER]
    assert averages[2].startswith("average of the attacks: DIP 1000 90.0 [82.6, 94.5], published 70.6")
    assert not {"published cost", "published average"} & found(columns({("dip", 300): 5})).keys()


def test_the_papers_own_numbers_bear_its_claims_out() -> None:
    results = found(table_cells(made_up(images=500)))
    for name in ("cost", "gain", "iterations, clean", "average"):
        assert results[name].verdict == CONFIRMED
    for name in ("published cost", "published average"):
        assert results[name].verdict == SAME
    compared = results["randomisation"]
    assert "(published 75.1 against 65.1)" in compared.details[0]
    assert compared.claim.endswith(
        "(section 4, Table 2: “having a higher accuracy across all three adversaries used in that comparison”)"
    )


def test_what_was_not_measured_is_said_and_claims_need_a_reconstruction() -> None:
    results = found(table_cells(made_up(budgets=(100, 200), conditions=("clean", "bi-10"))))
    assert results["gain"].details[0].startswith("BI ε=10: DIP 200 ")
    assert results["gain"].details[1] == "not measured: FGSM ε=2, FGSM ε=5, FGSM ε=10, LLCI ε=10"
    assert not {"iterations, fgsm-10", "average", "randomisation"} & results.keys()
    assert findings([cell(3, defence="none", budget=0)]) == []


def test_reports_have_them_and_say_what_a_reduced_setting_can_decide() -> None:
    full, reduced = (as_markdown(made_up(images=images), table=2) for images in (500, 40))
    title = "## The paper's claims, for this classifier and setting\n\nClassifier: efficientnet-lite0. Images: "
    assert f"{title}500 of" in full
    assert f"{title}40 of" in reduced
    assert "\n- CONFIRMED: The defence lowers the accuracy on clean images (section 4, Table 1: “" in full
    assert "\n- CONFIRMED in this setting: The defence lowers the accuracy on clean images" in reduced
    assert "\n  - FGSM ε=2: DIP 1000 " in full
    assert "neither confirms nor contradicts the paper" in reduced
    assert "neither confirms nor contradicts the paper" not in full
    text = as_text(made_up(images=40), table=2)
    assert "\n- CONFIRMED in this setting: The defence lowers" in text
    assert "\n  - FGSM ε=2: DIP 1000 " in text
