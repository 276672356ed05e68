"""Bootstrap intervals: their width is that of theory, and their memory does not grow."""

import tracemalloc
from math import isnan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.errors import BadSetting
from idefics.evaluate.bootstrap import bootstrap_mean, bootstrap_statistic
from idefics.evaluate.metrics.cider import cider_d
from idefics.evaluate.metrics.ranking import roc_auc


def area(rows):
    return roc_auc(rows[:, 0], rows[:, 1])


def test_the_interval_of_a_share_has_the_width_of_the_normal_distribution():
    interval = bootstrap_mean([1.0] * 300 + [0.0] * 700)
    width = 1.96 * sqrt(0.3 * 0.7 / 1000)
    assert interval.value == 0.3
    assert interval.low == pytest.approx(0.3 - width, abs=0.002)
    assert interval.high == pytest.approx(0.3 + width, abs=0.002)


def test_the_interval_lies_between_two_and_a_half_percent_on_either_side():
    """Of five rows, one of which is 1, no 1 is drawn in 33 % of the resamples, three or more in 6 %, four in 0.7 %."""
    interval = bootstrap_mean([0.0, 0.0, 0.0, 0.0, 1.0])
    assert (interval.value, interval.low, interval.high) == (0.2, 0.0, pytest.approx(0.6))


def test_95_of_100_intervals_hold_the_true_value():
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(100):
        interval = bootstrap_mean(rng.random(50) < 0.4)
        held += interval.low <= 0.4 <= interval.high
    assert 89 <= held <= 99


def test_the_seed_decides():
    scores = np.random.default_rng(0).random(40)
    assert bootstrap_mean(scores, seed=3) == bootstrap_mean(scores, seed=3) != bootstrap_mean(scores, seed=4)
    rows = np.stack([scores, np.arange(40) % 2], axis=1)
    first, same, other = (bootstrap_statistic(rows, area, seed=seed) for seed in (3, 3, 4))
    assert first == same != other


def test_a_statistic_is_resampled_by_rows():
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 2
    scores = (
        rng.normal(size=200) + labels
    )  # the area of two normal distributions one deviation apart is 0.760
    interval = bootstrap_statistic(np.stack([scores, labels], axis=1), area)
    assert interval.value == roc_auc(scores, labels)
    deviation = sqrt(interval.value * (1 - interval.value) / 66)  # Hanley and McNeil (1982), about
    assert interval.low == pytest.approx(interval.value - 1.96 * deviation, abs=0.05)
    assert interval.high == pytest.approx(interval.value + 1.96 * deviation, abs=0.05)
    assert interval.low < interval.value < interval.high


def test_the_mean_as_a_statistic_has_the_same_interval():
    scores = np.random.default_rng(2).random(100)
    assert bootstrap_statistic(scores, lambda rows: float(rows.mean())).low == pytest.approx(
        bootstrap_mean(scores).low, abs=0.005
    )


def test_resamples_without_a_value_do_not_count():
    interval = bootstrap_statistic([(0.0, 0), (1.0, 1)], area)  # half of the resamples have one label only
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)
    undefined = bootstrap_statistic([(0.0, 1), (1.0, 1)], area)
    assert isnan(undefined.value) and isnan(undefined.low) and isnan(undefined.high)


def test_the_weights_of_cider_d_stay_those_of_all_rows():
    """A resample that repeats one picture has the mean of its score, not the 0 of a single picture."""
    captions, references = ["a red dog runs", "a cat"], [["a red dog runs"], ["a blue cat sits"]]
    scores = cider_d(captions, references)
    interval = bootstrap_mean(scores)
    assert scores[0] == pytest.approx(10.0) and 0.0 < scores[1] < 5.0
    assert (interval.low, interval.high) == (min(scores), max(scores))


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_the_interval_lies_within_the_scores(scores):
    interval = bootstrap_mean(scores)
    assert min(scores) - 1e-12 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= max(scores) + 1e-12


@pytest.mark.slow
def test_memory_is_flat_over_100_000_rows():
    scores = np.random.default_rng(0).random(100_000)
    tracemalloc.start()
    interval = bootstrap_mean(scores)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sqrt(1 / 12 / 100_000), rel=0.05)


@pytest.mark.parametrize("bootstrap", [bootstrap_mean, lambda rows: bootstrap_statistic(rows, area)])
def test_rows_are_there_and_are_numbers(bootstrap):
    with pytest.raises(BadSetting, match="there are no rows to compute an interval from"):
        bootstrap([])
    with pytest.raises(BadSetting, match="a score is NaN; give a failed row the score of a wrong answer"):
        bootstrap([(float("nan"), 1.0)])
