"""Percentile bootstrap: how far a metric might be from its value if other rows had been drawn.

Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (Annals of Statistics 7, 1979); percentile
intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from idefics.errors import BadSetting

FloatArray = NDArray[np.float64]
RowStatistic = Callable[[FloatArray], float]
"""Computes a metric from all rows: an array (N, ...) with the numbers of each row."""

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK_NUMBERS = 1_000_000  # 8 MB of random row numbers at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """The value of a metric with its 95 % interval, both in the unit of the metric."""

    value: float
    low: float
    high: float


UNDEFINED = Interval(float("nan"), float("nan"), float("nan"))


def bootstrap_mean(scores: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean of the scores of all rows, with its 95 % interval.

    Of CIDEr-D, the scores of the rows are resampled as they are: the weights of n-grams stay those of the whole
    data set.

    Args:
        scores: (N,) a score for each row.
        seed: of the random numbers; the same seed gives the same interval.

    Raises:
        BadSetting: there is no row, or a score is not a number.
    """
    values = check_rows(scores)
    return interval_of(float(values.mean()), resample_means(values, seed=seed))


def bootstrap_statistic(rows: ArrayLike, statistic: RowStatistic, *, seed: int = 0) -> Interval:
    """A metric that is not a mean of scores, such as ROC-AUC, with its 95 % interval.

    Args:
        rows: (N, ...) the numbers of each row, such as (score, label).
        statistic: computes the metric from such an array; NaN where it is not defined, such as ROC-AUC of rows that
            all have the same label. Resamples where it is NaN do not count.
        seed: of the random numbers; the same seed gives the same interval.

    Raises:
        BadSetting: there is no row, or a number of one is NaN.
    """
    values = check_rows(rows)
    return interval_of(statistic(values), resample_statistic(values, statistic, seed=seed))


def resample_means(scores: FloatArray, *, seed: int = 0) -> FloatArray:
    """Means of 10,000 samples of N rows, drawn from the (N,) scores with replacement: (10_000,).

    Memory does not grow with the number of rows beyond one sample.
    """
    rng = np.random.default_rng(seed)
    num_rows = len(scores)
    means = np.empty(NUM_RESAMPLES)
    step = max(1, _CHUNK_NUMBERS // num_rows)
    for start in range(0, NUM_RESAMPLES, step):
        count = min(step, NUM_RESAMPLES - start)
        drawn = rng.integers(0, num_rows, size=(count, num_rows), dtype=np.int32)
        means[start : start + count] = scores[drawn].mean(axis=1)
    return means


def resample_statistic(rows: FloatArray, statistic: RowStatistic, *, seed: int = 0) -> FloatArray:
    """The statistic of 10,000 samples of N rows, drawn from the (N, ...) rows with replacement: (10_000,)."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(rows), size=len(rows), dtype=np.int32) for _ in range(NUM_RESAMPLES))
    return np.fromiter((statistic(rows[drawn]) for drawn in draws), np.float64, NUM_RESAMPLES)


def interval_of(value: float, resampled: FloatArray) -> Interval:
    """The interval between the 2.5th and the 97.5th percentile of the values that are not NaN."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))


def check_rows(rows: ArrayLike) -> FloatArray:
    """The rows as an array.

    Raises:
        BadSetting: there is none, or a number of one is NaN.
    """
    values = np.asarray(rows, dtype=np.float64)
    if not values.size:
        raise BadSetting("there are no rows to compute an interval from")
    if np.isnan(values).any():
        raise BadSetting("a score is NaN; give a failed row the score of a wrong answer")
    return values
