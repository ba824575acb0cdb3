"""The control without a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from dipdefense.evaluation import low_pass


@pytest.mark.parametrize(("factor", "smaller"), [(2, (34, 32)), (3, (23, 22))])
def test_a_filter_makes_the_image_smaller_and_larger_again(factor: int, smaller: tuple[int, int]) -> None:
    classifier, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 67 * 64, 4)), torch.rand(2, 3, 67, 64)
    defence = low_pass((2, 3))
    with torch.no_grad():
        (outcome,) = defence.classify(classifier, images, (factor,), (5, 6))
        reduced = interpolate(images, size=smaller, mode="area")
        enlarged = interpolate(reduced, size=(67, 64), mode="bicubic", antialias=True).clamp(0, 1)
        torch.testing.assert_close(outcome.scores, classifier(enlarged), rtol=1e-5, atol=1e-5)
    assert (outcome.budget, list(outcome.status), outcome.losses) == (factor, ["ok", "ok"], None)
    assert (defence.name, defence.budgets, defence.random) == ("low-pass", (2, 3), False)
