"""How sure a share, a mean or a separation is: 95 % intervals."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # of a normal distribution, two-sided
RESAMPLES = 2000  # of a bootstrap

Interval = tuple[float, float]
Values = Sequence[float] | np.ndarray


def wilson(hits: int, count: int) -> Interval:
    """Of a share (Wilson 1927): sound for few cases and for shares near 0 and 1.

    Raises:
        ValueError: no cases, or more hits than cases.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"{hits} hits of {count} cases have no interval; expected at least one case and 0 to all hits")
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / count / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Values) -> Interval:
    """Of a mean: percentile bootstrap over the values; seeded, so the same values have the same interval."""
    numbers = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).choice(numbers, (RESAMPLES, len(numbers)))
    low, high = np.percentile(draws.mean(1), (2.5, 97.5))
    return float(low), float(high)


def roc_auc(low: Values, high: Values) -> float:
    """Area under the ROC curve: how often a value of `high` lies above one of `low`, ties counted half."""
    below = np.sort(np.asarray(low, dtype=float))
    above = np.asarray(high, dtype=float)
    wins = np.searchsorted(below, above, side="left") + np.searchsorted(below, above, side="right")
    return float(wins.mean() / 2 / len(below))


def auc_interval(low: Values, high: Values) -> Interval:
    """Of `roc_auc`: percentile bootstrap over both sides, seeded as well."""
    rng = np.random.default_rng(0)
    areas = [roc_auc(rng.choice(low, len(low)), rng.choice(high, len(high))) for _ in range(RESAMPLES)]
    begin, end = np.percentile(areas, (2.5, 97.5))
    return float(begin), float(end)
