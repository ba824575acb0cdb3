"""Curves, their bands and peaks, and their tests, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measuring import record
from scipy import stats

from dipdefense.evaluation.curves import Curve, confidence_curves, exchanged_p, largest_mean_p

CHANCE = np.random.default_rng(0)


def curve(confidences: np.ndarray | list[list[float]]) -> Curve:
    values = torch.tensor(np.asarray(confidences), dtype=torch.float64)
    images, budgets = values.shape
    return Curve(
        "fgsm-5", tuple(range(100, 100 * budgets + 1, 100)), tuple(map(str, range(images))), values, torch.zeros(images)
    )


def test_the_band_is_scipys_percentile_bootstrap() -> None:
    values = CHANCE.random((30, 3))
    made = curve(values)
    for place, (low, high) in enumerate(zip(*made.band, strict=True)):
        theirs = stats.bootstrap(
            (values[:, place],), np.mean, n_resamples=10_000, method="percentile", rng=1
        ).confidence_interval
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert made.mean == pytest.approx(values.mean(axis=0).tolist())
    assert made.at(200).low == made.band[0][1]
    assert made.band == curve(values).band


def test_the_peak_is_the_means_and_its_interval_says_how_sure_that_is() -> None:
    sure = curve([[0.1, 0.8, 0.2]] * 6)
    assert sure.peak == (200, 200, 200)
    assert sure.peaks == [200] * 6
    unsure = curve([[0.1, 0.9, 0.2], [0.1, 0.2, 0.85]] * 3)
    assert unsure.peak == (200, 200, 300)
    assert unsure.peaks == [200, 300] * 3
    assert str(unsure.at(200)) == f"0.55 [{unsure.band[0][1]:.2f}, {unsure.band[1][1]:.2f}]"


def test_curves_of_records_by_image_and_budget_are_means_over_seeds() -> None:
    records = [
        record(image, position=place, condition=condition, budget=budget, seed=seed, confidence=confidence)
        for place, image in enumerate("ab")
        for condition in ("llci-5", "clean", "fgsm-25")
        for budget in (20, 10)
        for seed, confidence in ((0, 0.2 + place / 10), (1, 0.6 + budget / 100))
    ]
    records += [
        record(image, position=place, condition="fgsm-25", defence="none", budget=0, confidence=0.01)
        for place, image in enumerate("ab")
    ]
    clean, fgsm, llci = confidence_curves(reversed(records))
    assert [each.condition for each in (clean, fgsm, llci)] == ["clean", "fgsm-25", "llci-5"]
    assert (fgsm.budgets, fgsm.images) == ((10, 20), ("a", "b"))
    assert fgsm.confidences.tolist() == pytest.approx(np.array([[0.45, 0.5], [0.5, 0.55]]))
    assert fgsm.undefended is not None
    assert fgsm.undefended.tolist() == [0.01, 0.01]
    assert clean.undefended is None


def test_an_output_that_was_not_finite_has_confidence_0_and_a_missing_one_is_refused() -> None:
    records = [record(budget=10), record(budget=20, prediction=-1, confidence=None, status="diverged")]
    assert confidence_curves(records)[0].mean == pytest.approx([0.3, 0.0])
    with pytest.raises(ValueError, match="clean are of fewer images than others; finish the run first"):
        confidence_curves([*records, record("b", position=1, budget=10)])


def test_an_image_without_one_of_the_seeds_is_refused() -> None:
    records = [record(image, position=place, seed=seed) for place, image in enumerate("ab") for seed in (0, 1)]
    assert confidence_curves(records)[0].n == 2
    with pytest.raises(ValueError, match="some images have fewer seeds than others under clean"):
        confidence_curves(records[:-1])


def test_random_numbers_are_the_same_whatever_the_default_device() -> None:
    values = CHANCE.random((20, 2))
    numbers = []
    for device in ("cpu", "meta"):
        table = torch.tensor(values, device="cpu")
        made = Curve("fgsm-5", (100, 200), tuple(map(str, range(20))), table, None)
        with torch.device(device):
            numbers.append((made._resampled.sum().item(), largest_mean_p(table)))
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("n", [6, 12, 25])
def test_sign_flips_are_scipys(n: int) -> None:
    values = CHANCE.normal(0.3, 1, n)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="greater", n_resamples=20_000, rng=1
    ).pvalue
    assert largest_mean_p(torch.tensor(values)[:, None]) == pytest.approx(theirs, abs=0.0 if n <= 13 else 0.015)


def test_the_largest_of_many_differences_is_no_false_alarm() -> None:
    rejected = [largest_mean_p(torch.tensor(CHANCE.normal(size=(8, 20)))) < 0.05 for _ in range(200)]
    # Each of 20 tests by itself would find one in most of these tables.
    assert sum(rejected) <= 20


def test_two_images_decide_nothing() -> None:
    assert largest_mean_p(torch.ones(2, 5)) == 0.25


def test_exchanges_between_two_conditions_are_sign_flips_of_their_difference() -> None:
    values = CHANCE.integers(1, 11, (15, 2)) * 100 + np.array([0, 150])
    theirs = stats.permutation_test(
        (values[:, 1] - values[:, 0],), np.mean, permutation_type="samples", n_resamples=20_000, rng=1
    ).pvalue
    assert exchanged_p(values.tolist()) == pytest.approx(theirs, abs=0.02)


def test_conditions_alike_to_every_image_do_not_differ() -> None:
    assert exchanged_p([[300.0, 300.0, 300.0], [700.0, 700.0, 700.0]]) == 1
    assert exchanged_p(CHANCE.permuted(np.tile([1, 2, 3, 4], (20, 1)), axis=1).tolist()) > 0.05
    assert exchanged_p(np.tile([1, 2, 3, 4], (5, 1)).tolist()) < 0.01
    for bad in ([], [[1.0]]):
        with pytest.raises(ValueError, match="at least two conditions"):
            exchanged_p(bad)
