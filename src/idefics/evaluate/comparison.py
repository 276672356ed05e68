"""Comparison of two evaluations of the same rows: paired bootstrap, and the rows that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from idefics.errors import BadSetting
from idefics.evaluate.bootstrap import (
    FloatArray,
    Interval,
    RowStatistic,
    check_rows,
    interval_of,
    resample_means,
    resample_statistic,
)


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """The answer of a model to one row.

    Attributes:
        answer: the generated text or the label that was chosen.
        score: of the answer.
        numbers: what a metric that is not a mean of scores is computed from, such as (score, label) for ROC-AUC.
    """

    answer: str
    score: float
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row that the two evaluations answered with different scores."""

    id: str
    first: ScoredRow
    second: ScoredRow


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the second of two evaluations differs from the first.

    Attributes:
        num_rows: rows that both have; all else is computed from them.
        first, second: the metric of each.
        difference: second minus first, with the 95 % interval of the paired bootstrap.
        share_below_zero: of the resamples, those in which the second is worse; near 0: it is better, near 1: worse,
            and near one half: undecided. Resamples with a difference of exactly 0 count one half.
        changed: rows with another score, the largest gain first and the largest loss last.
        only_in_first, only_in_second: ids of rows that the other does not have, in order.
    """

    num_rows: int
    first: float
    second: float
    difference: Interval
    share_below_zero: float
    changed: tuple[ChangedRow, ...]
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]


def compare_rows(
    first: Mapping[str, ScoredRow],
    second: Mapping[str, ScoredRow],
    *,
    statistic: RowStatistic | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares two evaluations row by row; each resample draws the same rows for both.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 16, for paired samples.

    Args:
        first, second: the rows of each evaluation by id.
        statistic: computes the metric from an array (N, K) of the rows' `numbers`; None: it is the mean of the
            scores.
        seed: of the random numbers; the same seed gives the same result.

    Raises:
        BadSetting: no id is in both.
    """
    ids = [row_id for row_id in first if row_id in second]
    if not ids:
        raise BadSetting(
            f"no row of the first evaluation ({len(first)}) is among those of the second ({len(second)}); "
            "compare evaluations of the same data"
        )
    before, after = [first[row_id] for row_id in ids], [second[row_id] for row_id in ids]
    if statistic is None:
        rows = _stack([(row.score,) for row in before], [(row.score,) for row in after])
        values = rows.mean(axis=0)[:, 0]
        differences = resample_means(rows[:, 1, 0] - rows[:, 0, 0], seed=seed)
    else:
        rows = _stack([row.numbers for row in before], [row.numbers for row in after])
        values = np.array([statistic(rows[:, 0]), statistic(rows[:, 1])])
        differences = resample_statistic(
            rows, lambda drawn: statistic(drawn[:, 1]) - statistic(drawn[:, 0]), seed=seed
        )
    pairs = zip(ids, before, after, strict=True)
    changed = [ChangedRow(*pair) for pair in pairs if pair[1].score != pair[2].score]
    return Comparison(
        num_rows=len(ids),
        first=float(values[0]),
        second=float(values[1]),
        difference=interval_of(float(values[1] - values[0]), differences),
        share_below_zero=_share_below_zero(differences),
        changed=tuple(sorted(changed, key=lambda row: row.first.score - row.second.score)),
        only_in_first=tuple(row_id for row_id in first if row_id not in second),
        only_in_second=tuple(row_id for row_id in second if row_id not in first),
    )


def _stack(first: Sequence[tuple[float, ...]], second: Sequence[tuple[float, ...]]) -> FloatArray:
    """The numbers of both evaluations: (N, 2, K)."""
    return np.stack([check_rows(first), check_rows(second)], axis=1)


def _share_below_zero(differences: FloatArray) -> float:
    defined = differences[~np.isnan(differences)]
    return float((np.sign(-defined) + 1).mean() / 2) if len(defined) else float("nan")
