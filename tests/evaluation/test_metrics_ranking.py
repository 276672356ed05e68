"""ROC-AUC and NDCG, equal to scikit-learn's; the cut of VisDial and the comparisons of Winoground, by hand."""

from math import isnan, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics.errors import BadSetting
from idefics.evaluate.metrics.ranking import (
    WinogroundScores,
    ndcg,
    ndcg_at_relevant,
    roc_auc,
    roc_auc_of_decisions,
    winoground,
    winoground_m4,
)

# Values of scikit-learn 1.9.1: roc_auc_score(labels, scores) and ndcg_score([relevance], [scores]).
AREAS = [
    ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
    ([1, 1, 2, 2, 3], [0, 1, 0, 1, 1], 0.6666666666666666),
    ([-5.5, -0.25, -3, -3, -3, 2], [1, 0, 1, 0, 1, 0], 0.11111111111111112),
    ([1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0, 0], 0.5833333333333333),
]
GAINS = [
    ([3, 2, 3, 0, 1, 2], [6, 5, 4, 3, 2, 1], 0.9608081943360616),
    ([0, 0.2, 1, 0, 0.4], [-1, -2, -3, -4, -5], 0.5774499402000093),
    ([0, 0.2, 1, 0, 0.4], [-1, -1, -1, -2, -2], 0.751182254982556),
    ([0, 0, 0], [1, 2, 3], 0.0),
    ([1, 0.5], [0, 0], 0.9298593499260984),
    ([0, 1, 0, 0, 0.6, 0.2, 0, 0], [0.3, 0.1, 0.9, 0.3, 0.3, -2, 5, 0.1], 0.45407023314400247),
]


@pytest.mark.parametrize(("scores", "labels", "area"), AREAS)
def test_the_area_is_that_of_scikit_learn(scores, labels, area):
    assert roc_auc(scores, labels) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize(("relevance", "scores", "gain"), GAINS)
def test_the_gain_is_that_of_scikit_learn(relevance, scores, gain):
    assert ndcg(relevance, scores) == pytest.approx(gain, abs=1e-12)


def test_many_areas_and_gains_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(2, 60))
        scores = rng.integers(0, rng.integers(2, 40), count).astype(float)
        labels = rng.permutation(np.arange(count) % 2)
        relevance = rng.random(count) * rng.integers(0, 2, count)
        assert roc_auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
        assert ndcg(relevance, scores) == pytest.approx(metrics.ndcg_score([relevance], [scores]), abs=1e-12)


LABELLED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=30)


def split(rows):
    return [row[0] for row in rows], [row[1] for row in rows]


@given(LABELLED, st.randoms(use_true_random=False))
def test_the_area_is_the_share_of_pairs_in_the_right_order(rows, random):
    positive = [score for score, label in rows if label]
    negative = [score for score, label in rows if not label]
    pairs = [(high, low) for high in positive for low in negative]
    area = roc_auc(*split(rows))
    if not pairs:
        assert isnan(area)
        return
    right = sum(1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs)
    assert area == pytest.approx(right / len(pairs), abs=1e-12)
    assert roc_auc(*split(random.sample(rows, len(rows)))) == area
    assert roc_auc([3.0 * score - 7.0 for score, _ in rows], split(rows)[1]) == area


@given(LABELLED)
def test_the_area_of_decisions_is_the_mean_of_two_accuracies(rows):
    decisions = [int(score > 2) for score, _ in rows]
    hits = [
        [decision == label for decision, (_, label) in zip(decisions, rows, strict=True) if label == kind]
        for kind in (0, 1)
    ]
    area = roc_auc_of_decisions(decisions, split(rows)[1])
    if not all(hits):
        assert isnan(area)
    else:
        assert area == pytest.approx(sum(sum(hit) / len(hit) for hit in hits) / 2, abs=1e-12)


def test_scores_and_decisions_have_different_areas():
    scores, labels = [-2.0, -1.0, 1.0, 2.0], [0, 1, 0, 1]
    decisions = [int(score > 0) for score in scores]
    assert (roc_auc(scores, labels), roc_auc_of_decisions(decisions, labels)) == (0.75, 0.5)


def test_the_cut_is_at_the_number_of_relevant_candidates():
    relevance, scores = [0.0, 1.0, 0.4, 0.0], [4.0, 3.0, 2.0, 1.0]  # the order is 0, 1, 0.4, 0
    assert ndcg_at_relevant(relevance, scores) == pytest.approx(
        (1 / log2(3)) / (1 + 0.4 / log2(3)), abs=1e-12
    )
    assert ndcg(relevance, scores) == pytest.approx((1 / log2(3) + 0.4 / 2) / (1 + 0.4 / log2(3)), abs=1e-12)


def test_equal_scores_share_gains_or_keep_the_order_of_the_list():
    assert ndcg([1.0, 0.0], [0.0, 0.0]) == pytest.approx((0.5 + 0.5 / log2(3)), abs=1e-12)
    assert (ndcg_at_relevant([1.0, 0.0], [0.0, 0.0]), ndcg_at_relevant([0.0, 1.0], [0.0, 0.0])) == (1.0, 0.0)


CANDIDATES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.floats(-50, 0)), min_size=1, max_size=20
)


@given(CANDIDATES, st.randoms(use_true_random=False))
def test_the_best_order_gains_1_and_any_other_less(candidates, random):
    relevance, scores = split(candidates)
    relevant = any(relevance)
    for gain in (ndcg, ndcg_at_relevant):
        assert gain(relevance, relevance) == pytest.approx(float(relevant), abs=1e-12)
        assert 0.0 <= gain(relevance, scores) <= 1.0 + 1e-12
    assert ndcg(*split(random.sample(candidates, len(candidates)))) == pytest.approx(
        ndcg(relevance, scores), abs=1e-12
    )


@pytest.mark.parametrize(
    ("scores", "official", "m4"),
    [
        ([[4, 1], [1, 4]], (1, 1, 1), (1, 1, 1)),
        ([[4, 1], [3, 2]], (1, 0, 0), (0, 1, 0)),  # caption 1 prefers picture 0
        ([[4, 3], [1, 2]], (0, 1, 0), (1, 0, 0)),  # picture 1 prefers caption 0
        ([[1, 4], [4, 1]], (0, 0, 0), (0, 0, 0)),
        ([[2, 2], [2, 2]], (0, 0, 0), (1, 1, 1)),
        ([[3, 1], [3, 4]], (0, 1, 0), (1, 1, 1)),  # one tie
    ],
)
def test_winoground_compares_captions_and_pictures(scores, official, m4):
    assert winoground(scores) == WinogroundScores(*map(float, official))
    assert winoground_m4(scores) == WinogroundScores(*map(float, m4))


SQUARES = st.permutations(range(4)).map(lambda numbers: [numbers[:2], numbers[2:]])


@given(SQUARES)
def test_the_authors_text_score_compares_pictures(scores):
    official, authors = winoground(scores), winoground_m4(scores)
    assert (authors.text, authors.image, authors.group) == (official.image, official.text, official.group)


@given(SQUARES)
def test_winoground_is_the_same_after_both_are_swapped(scores):
    assert winoground([row[::-1] for row in scores[::-1]]) == winoground(scores)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roc_auc([1.0], [0, 1]), "2 labels for 1 rows; give one for each"),
        (lambda: roc_auc([float("nan")], [0]), "scores must be a list of numbers, without NaN"),
        (lambda: roc_auc_of_decisions([0.5], [0]), "decisions are 0 or 1; give scores to roc_auc"),
        (lambda: ndcg([1.0], [1.0, 2.0]), "2 scores for 1 rows; give one for each"),
        (lambda: ndcg_at_relevant([-1.0], [1.0]), "a relevance is -1; give numbers of 0 or more"),
        (lambda: winoground([[1.0, 2.0]]), "Winoground compares 2 captions with 2 pictures; give scores"),
        (
            lambda: winoground_m4([[1.0], [2.0]]),
            "Winoground compares 2 captions with 2 pictures; give scores",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(call, message):
    with pytest.raises(BadSetting) as raised:
        call()
    assert str(raised.value).startswith(message)
