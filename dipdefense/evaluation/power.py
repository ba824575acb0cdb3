"""How many images decide a paired comparison: power of the exact McNemar test."""

from __future__ import annotations

POWER, LEVEL = 0.8, 0.05


def mcnemar_power(n: int, only_first: float, only_second: float, *, level: float = LEVEL) -> float:
    """The power of the exact two-sided McNemar test on n images.

    Args:
        n: images.
        only_first: probability that an image is classified correctly by the first alone.
        only_second: likewise by the second alone.
        level: of the test.

    Raises:
        ValueError: n is negative, or the two are no probabilities that leave room for each other.

    Example:
        >>> round(mcnemar_power(100, 0.2, 0.05), 2)
        0.84
    """
    from scipy.stats import binom

    if n < 0:
        raise ValueError(f"n must be zero or more images, got {n}")
    if not (only_first >= 0 and only_second >= 0 and only_first + only_second <= 1):
        raise ValueError(
            f"only_first and only_second must be probabilities that add up to 1 at most, got {only_first} and "
            f"{only_second}"
        )
    differing = only_first + only_second
    if differing == 0:
        return 0.0
    power = 0.0
    for count in range(n + 1):
        weight = binom.pmf(count, n, differing)
        if weight < 1e-9:
            continue
        # The test rejects where the smaller of the two counts is at most this.
        largest = int(binom.ppf(level / 2, count, 0.5))
        while largest >= 0 and 2 * binom.cdf(largest, count, 0.5) > level:
            largest -= 1
        if largest < 0:
            continue
        share = only_first / differing
        power += weight * (binom.cdf(largest, count, share) + binom.cdf(largest, count, 1 - share))
    return float(power)


def images_needed(
    only_first: float, only_second: float, *, power: float = POWER, level: float = LEVEL, most: int = 5000
) -> int | None:
    """The fewest images that decide a comparison with this power, to within 5 %.

    None where ``most`` images are too few.

    Args:
        only_first: probability that an image is classified correctly by the first alone; see ``smoothed``.
        only_second: likewise by the second alone.
        power: wanted probability of a significant test.
        level: of the test, two-sided.
        most: images at hand.

    Example:
        >>> images_needed(0.2, 0.05)
        92
    """
    high = min(8, most)
    while mcnemar_power(high, only_first, only_second, level=level) < power:
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        if mcnemar_power(middle, only_first, only_second, level=level) < power:
            low = middle
        else:
            high = middle
    return high


def smoothed(count: int, n: int) -> float:
    """A share of n images, smoothed for planning.

    Half an image is added to each of three outcomes, which keeps all of them possible.

    Example:
        >>> smoothed(0, 20) > 0
        True
    """
    return (count + 0.5) / (n + 1.5)
