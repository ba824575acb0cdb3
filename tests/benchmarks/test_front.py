"""Accuracy against time: the front, the fast candidates, and a reconstruction at another size."""

from __future__ import annotations

import argparse
import sys

import torch
from conftest import ROOT
from torch import nn
from torch.nn.functional import interpolate

from dipdefense import DIPPurifier

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
    assert "| small | 1000 | 250 | 100.0 [34.2, 100.0] | 1 : 0 | 1 |" in text
    assert len(picture(POINTS).axes[0].lines) == 3 + 2


def test_a_candidate_at_another_size_reconstructs_the_smaller_image(tiny, monkeypatch) -> None:
    monkeypatch.setitem(script.CANDIDATES, "tiny", script.Candidate(tiny, side=32))
    given = argparse.Namespace(budgets=[1, 2], precision="fp32", backend="torch", batch=2, device="cpu")
    made = script.defence(script.CANDIDATES["tiny"], given, (3, 64, 64))
    classifier, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        last = list(made.classify(classifier, images, (1, 2), (5, 6)))[-1]
        smaller = interpolate(images, size=(32, 32), mode="area")
        output = DIPPurifier(2, config=tiny, precision="fp32")
        output = output.reconstruct(smaller, budgets=(2,), seed=(5, 6)).images[0]
        enlarged = interpolate(output, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(last.scores, classifier(enlarged), rtol=1e-5, atol=1e-5)
    assert made.settings["side"] == 32
