"""The paper's claims on outcomes made for every verdict."""

from __future__ import annotations

import pytest
from test_report import made_up

from dipdefense.evaluation.claims import CONFIRMED, CONTRADICTED, UNDECIDED, Comparison, decide, findings
from dipdefense.evaluation.report import as_markdown
from dipdefense.evaluation.statistics import Cell, compare, holm, summarise


def cell(right: int, *, condition: str = "fgsm-2", defence: str = "dip", budget: int = 1000, n: int = 40) -> Cell:
    """The first ``right`` images of n are correct."""
    return Cell(condition, defence, budget, {0: {str(image): float(image < right) for image in range(n)}}, 1.0)


def verdict(*pairs: tuple[int, int]) -> str:
    names = ("fgsm-2", "fgsm-5", "fgsm-10")
    return decide(
        "A claim.",
        [
            Comparison(name, cell(high, condition=name), cell(low, condition=name, defence="none", budget=0))
            for name, (high, low) in zip(names, pairs, strict=False)
        ],
    ).verdict


# Of images that only one of two gets right, 6 : 0 has p = 0.031 and 5 : 0 p = 0.0625; three tests triple the least.
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


def test_holm_is_the_published_procedure() -> None:
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_averages_are_compared_image_by_image() -> None:
    first = Cell("average", "dip", 1000, {0: {"a": 0.6, "b": 0.2, "c": 0.4}}, 1.0)
    second = Cell("average", "dip", 500, {0: {"a": 0.4, "b": 0.4, "c": 0.4}}, 1.0)
    assert compare(first, second)[:2] == (1, 1)


def test_the_papers_own_numbers_bear_its_claims_out() -> None:
    found = findings(summarise(made_up(images=500).records))
    assert len(found) == 9
    by_claim = {finding.claim: finding for finding in found}
    assert by_claim["The defence lowers the accuracy on clean images (section 4, Table 1)."].verdict == CONFIRMED
    raised = by_claim["It raises the accuracy under every attack (section 4, Table 2)."]
    assert raised.verdict == CONFIRMED
    assert len(raised.details) == 5
    compared = by_claim["It is above randomisation at each adversary compared (section 4, Table 2)."]
    assert [detail.split(":")[0] for detail in compared.details] == ["FGSM ε=2", "FGSM ε=5", "FGSM ε=10"]
    assert "(published 75.1 against 65.1)" in compared.details[0]
    slower = by_claim["Under FGSM ε=10, 1,000 iterations are worse than 750 (section 4, Table 2)."]
    assert "DIP 750" in slower.details[0].split(" against ")[0]


def test_what_was_not_measured_is_said_and_claims_need_a_reconstruction() -> None:
    found = findings(summarise(made_up(budgets=(100, 200), conditions=("clean", "bi-10")).records))
    (raised,) = [finding for finding in found if "every attack" in finding.claim]
    assert raised.claim.endswith("Not measured: FGSM ε=2, FGSM ε=5, FGSM ε=10, LLCI ε=10.")
    assert raised.details[0].startswith("BI ε=10: DIP 200 ")
    assert not any("750" in finding.claim for finding in found)
    assert findings([cell(3, defence="none", budget=0)]) == []


def test_reports_have_them_and_say_what_a_reduced_setting_can_decide() -> None:
    full, reduced = (as_markdown(made_up(images=images), table=2) for images in (500, 40))
    for report in (full, reduced):
        assert "- CONFIRMED: The defence lowers the accuracy on clean images" in report
    assert "neither confirm nor contradict the paper" in reduced
    assert "neither confirm nor contradict the paper" not in full
