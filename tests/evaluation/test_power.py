"""The power of the exact McNemar test, against a sum over every outcome."""

from __future__ import annotations

import itertools

import pytest
from scipy.stats import binomtest, multinomial

from dipdefense.evaluation.power import images_needed, mcnemar_power, smoothed

SHARES = [(0.3, 0.05), (0.1, 0.1), (0.5, 0.0), (0.05, 0.6)]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("n", [0, 3, 12])
def test_power_is_the_probability_of_a_significant_split(n: int, shares: tuple[float, float]) -> None:
    first, second = shares
    expected = 0.0
    for a, b in itertools.product(range(n + 1), repeat=2):
        if a + b <= n and a + b > 0 and binomtest(a, a + b).pvalue <= 0.05:
            expected += multinomial.pmf([a, b, n - a - b], n, [first, second, 1 - first - second])
    assert mcnemar_power(n, first, second) == pytest.approx(expected, abs=1e-6)


def test_the_images_needed_have_that_power_and_fewer_do_not() -> None:
    for first, second in ((0.3, 0.05), (0.12, 0.02)):
        n = images_needed(first, second)
        assert n is not None
        assert mcnemar_power(n, first, second) >= 0.8 > mcnemar_power(int(0.9 * n), first, second)


def test_a_difference_too_small_for_the_images_at_hand() -> None:
    assert images_needed(0.1, 0.1, most=500) is None
    assert images_needed(0.1, 0.05, most=100) is None
    assert images_needed(1.0, 0.0, most=5) is None
    assert images_needed(1.0, 0.0, most=6) == 6


def test_a_smoothed_share_is_never_impossible() -> None:
    assert 0 < smoothed(0, 20) < smoothed(20, 20) < 1


@pytest.mark.parametrize("shares", [(0.7, 0.4), (-0.1, 0.2)], ids=str)
def test_no_probabilities(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="only_first and only_second must be probabilities"):
        mcnemar_power(10, *shares)
    with pytest.raises(ValueError, match="n must be"):
        mcnemar_power(-1, 0.1, 0.1)
