"""Verdicts over the draws of random defences, and the worst case over attackers."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence

import pytest
from measuring import record

from dipdefense.evaluation.adaptive.judging import Verdict, attackers, paired, verdicts, worst_case
from dipdefense.evaluation.adaptive.names import Named, named, target_name
from dipdefense.evaluation.statistics import wilson


def judged(condition: str, outcomes: Sequence[str], *, defence: str = "dip", budget: int = 100) -> Verdict:
    """A verdict of one string an image, one letter a draw.

    "x" stands for correct, every other letter for a wrong class of its own.
    """
    records = [
        record(
            f"{place}.png", condition=condition, defence=defence, budget=budget, seed=seed, position=place, label=3,
            prediction=3 if letter == "x" else ord(letter), confidence=0.9 if letter == "x" else 0.1,
        )
        for place, letters in enumerate(outcomes)
        for seed, letter in enumerate(letters)
    ]  # fmt: skip
    (verdict,) = verdicts(records)
    return verdict


def test_mean_worst_and_majority_of_the_draws() -> None:
    verdict = judged("bpda-8@dip-100", ["xxxx", "xxab", "xxaa", "aaab", "xaaa"])
    assert verdict.single == (1.0, 0.5, 0.5, 0.0, 0.25)
    assert verdict.every == (True, False, False, False, False)
    # Two of four with the others split are a plurality; two against two are a tie, which is none.
    assert verdict.most == (True, True, False, False, False)
    assert (verdict.n, verdict.mean, verdict.worst, verdict.majority) == (5, 0.45, 0.2, 0.4)


def test_failing_once_in_many_draws_is_no_success() -> None:
    """An attack would be credited with every image here if one failed draw sufficed."""
    verdict = judged("bpda-8@dip-100", ["x" * 9 + "a"] * 10)
    assert verdict.mean == pytest.approx(0.9)
    assert verdict.majority == 1
    assert verdict.worst == 0


def test_the_interval_is_of_the_images_and_not_of_their_draws() -> None:
    verdict = judged("bpda-8@dip-100", ["xxxx", "aaaa"])
    assert verdict.interval(verdict.mean) == wilson(0.5, 2)


def test_the_error_of_the_draws_is_unbiased() -> None:
    """Its mean square, over verdicts of two fair draws, is the variance of the mean."""
    generator = random.Random(0)
    found = [
        judged("bpda-8@dip-100", ["".join(generator.choice("xa") for _ in "12") for _ in range(20)]) for _ in range(300)
    ]
    expected = 0.25 / 2 / 20
    assert statistics.fmean(verdict.error**2 for verdict in found) == pytest.approx(expected, rel=0.05)
    assert judged("bpda-8@dip-100", ["x", "a"]).error == 0


def test_the_loss_is_that_of_every_draw_and_finite() -> None:
    clean, attacked = judged("clean", ["xx"]), judged("bpda-8@dip-100", ["aa"])
    assert 0 < clean.loss < attacked.loss
    gone = verdicts([record("a", confidence=None, prediction=-1)])[0]
    assert 20 < gone.loss < 100


def test_the_worst_case_takes_each_images_strongest_attack() -> None:
    first = judged("bpda-8@dip-100", ["xxxx", "aaaa", "xxxx"])
    second = judged("trajectory-8@dip-100", ["aaaa", "xxxx", "xxxx"])
    both = worst_case([first, second])
    assert both.single == (0, 0, 1)
    assert both.most == both.every == (False, False, True)


def test_the_worst_case_of_equal_attacks_is_no_stronger_than_each() -> None:
    """The luckiest attack of each image would be: here it would leave 0.5."""
    first = judged("bpda-8@dip-100", ["xxxx", "axax"])
    second = judged("trajectory-8@dip-100", ["axax", "xxxx"])
    assert worst_case([first, second]).mean == 0.75


def test_the_worst_case_is_never_above_the_strongest_attack() -> None:
    # The halves mislead: what is strongest on one half is weakest on the other.
    first, second = judged("bpda-8@dip-100", ["xaxa"]), judged("transfer-8", ["xxxa"])
    assert worst_case([first, second]).mean <= first.mean


def test_the_worst_case_needs_the_same_images_and_defence() -> None:
    with pytest.raises(ValueError, match="at least one attack"):
        worst_case([])
    with pytest.raises(ValueError, match="one defence and the same images"):
        worst_case([judged("bpda-8@dip-100", ["x"]), judged("transfer-8", ["x", "x"])])
    with pytest.raises(ValueError, match="same images twice"):
        paired(judged("bpda-8@dip-100", ["x"]), judged("transfer-8", ["x", "x"]))


def test_attackers_are_neither_controls_nor_attacks_on_another_defence() -> None:
    conditions = (
        "clean", "noise-8", "transfer-8", "transfer-4", "bpda-8@dip-100", "bpda-8@dip-300", "bpda-8@dip-100#1",
        "one-step-8@dip-100", "unbounded-255@dip-100",
    )  # fmt: skip
    found = [judged(condition, ["x"]) for condition in conditions]
    assert [v.condition for v in attackers(found, ("dip", 100), 8)] == ["transfer-8", "bpda-8@dip-100"]
    fixed = [judged("known-seed-8@dip-100", ["x"], defence="dip-known-seed"), judged("clean", ["x"])]
    assert [v.condition for v in attackers(fixed, ("dip-known-seed", 100), 8)] == ["known-seed-8@dip-100"]


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "bpda-8@dip-100": Named("bpda", 8, target="dip-100"),
        "bpda-eot-0.5@randomisation-1#2": Named("bpda-eot", 0.5, target="randomisation-1", repeat=2),
        "square-l2-1.5@defence-1": Named("square", 1.5, "L2", "defence-1"),
        "transfer-8": Named("transfer", 8),
        "bpda-l2-1e-05@defence-1": Named("bpda", 1e-5, "L2", "defence-1"),
        "transfer-l2-0.3333333333333333": Named("transfer", 1 / 3, "L2"),
        "bpda-l2-1e06@dip-3": Named("bpda", 1e6, "L2", "dip-3"),
        "bpda-l2-1.23456789e20@dip-3": Named("bpda", 1.23456789e20, "L2", "dip-3"),
        "unbounded-l2-1000@dip-3": Named("unbounded", 1000, "L2", "dip-3"),
    }.items(),
)
def test_names_there_and_back(name: str, parts: Named) -> None:
    assert named(name) == parts
    assert str(parts) == name


def test_clean_images_and_averages_are_no_attacks() -> None:
    assert [named(name) for name in ("clean", "average", "")] == [None] * 3
    assert target_name("none", 0) == "none"


def test_verdicts_ignore_the_order_of_records() -> None:
    records = [record(f"{p}", position=p, seed=s, prediction=3 + (p == s)) for p in range(3) for s in range(3)]
    assert verdicts(records) == verdicts(records[::-1])
    assert dataclasses.replace(verdicts(records)[0]).images == ("0", "1", "2")
