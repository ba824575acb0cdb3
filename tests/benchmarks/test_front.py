"""Accuracy against time: the front, the fast candidates, and a reconstruction at another size."""

from __future__ import annotations

import sys

import torch
from conftest import ROOT
from torch import nn
from torch.nn.functional import interpolate

sys.path.insert(0, str(ROOT / "benchmarks"))

import front as script
from front_report import Point, fast, front, markdown, picture


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


def test_fast_candidates_take_at_most_half_of_the_time() -> None:
    assert [(p.name, p.budget) for p in fast(POINTS)] == [("small", 1000), ("compact", 500)]


def test_the_report_and_the_picture() -> None:
    text = markdown(POINTS, images=2, source="some", classifier="c")
    # Differences of 0 and 50 points: 25 ± t(0.975, 1 degree of freedom) = 12.706 times 25.
    row = "| small | 1000 | 250 | 100.0 [34.2, 100.0] | 1 : 0 | 1 | +25.0 [-292.7, +342.7] |"
    same, fastest = text.split("## At most half")
    assert row in same.split("## At 1000 iterations")[1]
    assert row in fastest
    assert "| slow | 1000 | 4000 |" in same
    assert "| compact | 500 | 500 | 50.0 [9.5, 90.5] | 0 : 1 | 1 | -25.0 [-342.7, +292.7] |" in fastest
    assert len(picture(POINTS).axes[0].lines) == 3 + 2


def test_a_filter_is_drawn_as_a_line_of_its_own() -> None:
    points = [*POINTS, point("filter-2", 0, 0, 1.0, 0.0)]
    assert len(picture(points).axes[0].lines) == 3 + 2 + 1
    assert [(p.name, p.budget) for p in front(points)] == [("filter-2", 0), ("small", 1000)]
    assert "| filter-2 | 0 | 0 | 50.0 [9.5, 90.5] | 0 : 1 | 1 |" in markdown(
        points, images=2, source="some", classifier="c"
    )


def test_a_filter_makes_the_image_smaller_and_larger_again() -> None:
    classifier, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 66 * 64, 4)), torch.rand(2, 3, 66, 64)
    with torch.no_grad():
        (outcome,) = script.filtered(3).classify(classifier, images, (0,), (5, 6))
        smaller = interpolate(images, size=(22, 22), mode="area")
        again = interpolate(smaller, size=(66, 64), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(outcome.scores, classifier(again), rtol=1e-5, atol=1e-5)
    assert (outcome.budget, script.filtered(3).budgets) == (0, (0,))
