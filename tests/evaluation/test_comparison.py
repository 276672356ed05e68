"""Comparison of two evaluations: paired differences, changed rows, and rows that only one of them has."""

from math import isnan

import numpy as np
import pytest

from idefics.errors import BadSetting
from idefics.evaluate.bootstrap import bootstrap_mean
from idefics.evaluate.metrics.ranking import roc_auc
from idefics.evaluate.report_comparison import ChangedRow, ScoredRow, compare_rows


def rows_of(scores, answer="a"):
    return {f"row{i}": ScoredRow(answer, score) for i, score in enumerate(scores)}


def area(rows):
    return roc_auc(rows[:, 0], rows[:, 1])


def test_an_evaluation_equals_itself():
    rows = rows_of([0.0, 1.0, 0.3])
    comparison = compare_rows(rows, rows)
    assert (comparison.num_rows, comparison.first, comparison.second) == (
        3,
        pytest.approx(1.3 / 3),
        comparison.first,
    )
    assert (comparison.difference.value, comparison.difference.low, comparison.difference.high) == (
        0.0,
        0.0,
        0.0,
    )
    assert comparison.share_below_zero == 0.5
    assert comparison.changed == comparison.only_in_first == comparison.only_in_second == ()


def test_the_difference_is_paired():
    """Where each row gains 0.1, the difference has no spread, however much the rows differ."""
    scores = np.random.default_rng(0).random(50)
    comparison = compare_rows(rows_of(scores), rows_of(scores + 0.1))
    assert comparison.difference.low == pytest.approx(0.1) == comparison.difference.high
    assert comparison.share_below_zero == 0.0
    assert compare_rows(rows_of(scores + 0.1), rows_of(scores)).share_below_zero == 1.0


def test_the_interval_is_that_of_the_mean_of_the_differences():
    rng = np.random.default_rng(3)
    first, second = rng.random(80), rng.random(80)
    comparison = compare_rows(rows_of(first), rows_of(second), seed=5)
    expected = bootstrap_mean(second - first, seed=5)
    assert (comparison.difference.low, comparison.difference.high) == (expected.low, expected.high)
    assert comparison.difference.value == pytest.approx(comparison.second - comparison.first)


def test_swapping_the_evaluations_turns_the_sign():
    rng = np.random.default_rng(4)
    first, second = rows_of(rng.random(30)), rows_of(rng.random(30))
    one, other = compare_rows(first, second), compare_rows(second, first)
    assert one.difference.value == -other.difference.value
    assert one.difference.low == pytest.approx(-other.difference.high, abs=1e-12)
    assert one.share_below_zero == pytest.approx(1 - other.share_below_zero, abs=1e-12)


def test_rows_are_matched_by_id_in_any_order():
    first, second = rows_of([0.0, 1.0, 0.5]), rows_of([1.0, 1.0, 0.0])
    turned = dict(reversed(second.items()))
    assert compare_rows(first, turned) == compare_rows(first, second)


def test_changed_rows_begin_with_the_largest_gain():
    first, second = rows_of([0.0, 1.0, 0.5, 0.5], "old"), rows_of([0.3, 0.0, 0.5, 1.0], "new")
    assert compare_rows(first, second).changed == (
        ChangedRow("row3", ScoredRow("old", 0.5), ScoredRow("new", 1.0)),
        ChangedRow("row0", ScoredRow("old", 0.0), ScoredRow("new", 0.3)),
        ChangedRow("row1", ScoredRow("old", 1.0), ScoredRow("new", 0.0)),
    )


def test_rows_of_one_evaluation_are_named_and_do_not_count():
    first = {"a": ScoredRow("x", 1.0), "b": ScoredRow("x", 0.0), "c": ScoredRow("x", 0.0)}
    second = {"d": ScoredRow("x", 1.0), "a": ScoredRow("x", 0.5)}
    comparison = compare_rows(first, second)
    assert (comparison.only_in_first, comparison.only_in_second) == (("b", "c"), ("d",))
    assert (comparison.num_rows, comparison.first, comparison.second) == (1, 1.0, 0.5)


def test_a_metric_of_all_rows_is_computed_from_their_numbers():
    rng = np.random.default_rng(5)
    labels = np.arange(60) % 2
    scores = [rng.normal(size=60) + gap * labels for gap in (0.0, 3.0)]
    evaluations = [
        {
            f"{i}": ScoredRow("", 0.0, (score, label))
            for i, (score, label) in enumerate(zip(values, labels, strict=True))
        }
        for values in scores
    ]
    comparison = compare_rows(*evaluations, statistic=area)
    assert (comparison.first, comparison.second) == tuple(roc_auc(values, labels) for values in scores)
    assert comparison.difference.value == comparison.second - comparison.first
    assert 0 < comparison.difference.low < comparison.difference.value < comparison.difference.high
    assert comparison.share_below_zero == 0.0
    assert compare_rows(evaluations[0], evaluations[0], statistic=area).difference.high == 0.0


def test_a_metric_that_is_not_defined_has_no_difference():
    rows = {"a": ScoredRow("", 0.0, (1.0, 1.0))}
    comparison = compare_rows(rows, rows, statistic=area)
    assert isnan(comparison.difference.value) and isnan(comparison.share_below_zero)


def test_evaluations_without_a_common_row_are_refused():
    message = r"no row of the first evaluation \(2\) is among those of the second \(1\)"
    with pytest.raises(BadSetting, match=message):
        compare_rows(rows_of([1.0, 0.0]), {"other": ScoredRow("", 1.0)})
