"""Metrics of orders: ROC-AUC, NDCG, and the comparisons of Winoground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from idefics.errors import BadSetting

FloatArray = NDArray[np.float64]


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """The probability that a positive row has a higher score than a negative one; equal scores count one half.

    Source: Mann and Whitney's U statistic; equal to `roc_auc_score` of scikit-learn.

    Args:
        scores: (N,) a number for each row, such as log p("yes") - log p("no").
        labels: (N,) 1 for positive rows, 0 for negative ones.

    Returns:
        The area, 0 to 1; not a number (NaN) if all rows have the same label.

    Raises:
        BadSetting: the numbers of scores and labels differ, or a score is not a number.
    """
    values, positive = _as_vector(scores, "scores"), _as_vector(labels, "labels") == 1
    _check_same_length(values, positive, "labels")
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(values) - num_positive)
    if not num_pairs:
        return float("nan")
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    rank_of_group = np.cumsum(sizes) - (sizes - 1) / 2  # the mean rank of equal scores, counted from 1
    rank_sum = rank_of_group[group[positive]].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / num_pairs)


def roc_auc_of_decisions(decisions: ArrayLike, labels: ArrayLike) -> float:
    """ROC-AUC of decisions instead of scores, as the authors of Idefics computed HatefulMemes.

    Source: last lines of github.com/huggingface/smollm,
    vision/m4/evaluation/custom_metrics/unfolded_classification_metrics.py, where `roc_auc_score` gets the most
    likely labels.

    What is odd about it: with only the values 0 and 1, the area is the mean of the accuracies on positive and on
    negative rows. It cannot be compared with an area that is computed from scores, as others publish it for
    HatefulMemes.

    Args:
        decisions: (N,) 1 for rows that were taken for positive, 0 for others.
        labels: (N,) 1 for positive rows, 0 for negative ones.

    Returns:
        The area, 0 to 1; not a number (NaN) if all rows have the same label.

    Raises:
        BadSetting: the numbers of decisions and labels differ, or a decision is neither 0 nor 1.
    """
    values = _as_vector(decisions, "decisions")
    if not np.isin(values, (0, 1)).all():
        raise BadSetting("decisions are 0 or 1; give scores to roc_auc")
    return roc_auc(values, labels)


def ndcg(relevance: ArrayLike, scores: ArrayLike) -> float:
    """Normalised discounted cumulative gain over all candidates of a row, as the authors of Idefics computed VisDial.

    The candidate at place i of the order by score gains its relevance divided by log2(i + 1); the sum is divided by
    that of the best order.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002), as `ndcg_score` of
    scikit-learn; github.com/huggingface/smollm,
    vision/m4/evaluation/custom_metrics/unfolded_classification_metrics.py.

    What is odd about it: there is no cut, so that candidates at the end of a long list still gain, and the score is
    never near 0. Candidates with equal scores share the mean of their gains. A row without a relevant candidate
    scores 0.

    Args:
        relevance: (C,) how well each candidate fits, 0 or more.
        scores: (C,) such as log-probabilities.

    Raises:
        BadSetting: the numbers of relevances and scores differ, a relevance is negative, or one is not a number.
    """
    gains, values = _check_candidates(relevance, scores)
    discounts = _discounts(len(gains))
    best = float(np.sort(gains)[::-1] @ discounts)
    if not best:
        return 0.0
    _, group, sizes = np.unique(-values, return_inverse=True, return_counts=True)
    mean_gains = np.bincount(group, weights=gains) / sizes
    return float(np.repeat(mean_gains, sizes) @ discounts) / best


def ndcg_at_relevant(relevance: ArrayLike, scores: ArrayLike) -> float:
    """Normalised discounted cumulative gain over the first K candidates, where K is the number of relevant ones.

    Source: the rules of the VisDial challenge, github.com/batra-mlp-lab/visdial-challenge-starter-pytorch,
    visdialch/metrics.py.

    What is odd about it: K differs from row to row. Of candidates with equal scores the one listed first is first.
    A row without a relevant candidate scores 0.

    Args and raises: as `ndcg`.
    """
    gains, values = _check_candidates(relevance, scores)
    cut = int(np.count_nonzero(gains))
    if not cut:
        return 0.0
    discounts = _discounts(cut)
    order = np.argsort(-values, kind="stable")[:cut]
    best = np.sort(gains)[::-1][:cut]
    return float(gains[order] @ discounts / (best @ discounts))


def _discounts(count: int) -> FloatArray:
    """1 / log2(i + 1) for the places i = 1..count."""
    places: FloatArray = np.arange(2.0, count + 2.0)
    return 1.0 / np.log2(places)


@dataclass(frozen=True, slots=True)
class WinogroundScores:
    """Which comparisons of one example of Winoground are right; each is 1 or 0.

    Attributes:
        text: for each picture, the right caption has the higher score.
        image: for each caption, the right picture has the higher score.
        group: both.
    """

    text: float
    image: float
    group: float


def winoground(scores: Sequence[Sequence[float]]) -> WinogroundScores:
    """Compares the scores of two captions with two pictures; equal scores are wrong.

    Source: Thrush et al., "Winoground: Probing Vision and Language Models for Visio-Linguistic Compositionality"
    (arXiv 2204.03162), section 3.

    What is odd about it: chance is 25 % for text and image, and 16.7 % for the group.

    Args:
        scores: 2 x 2, `scores[caption][picture]`; caption 0 belongs to picture 0, caption 1 to picture 1.

    Raises:
        BadSetting: `scores` is not 2 x 2.
    """
    (right_0, wrong_01), (wrong_10, right_1) = _check_winoground(scores)
    text = right_0 > wrong_10 and right_1 > wrong_01
    image = right_0 > wrong_01 and right_1 > wrong_10
    return WinogroundScores(float(text), float(image), float(text and image))


def winoground_m4(scores: Sequence[Sequence[float]]) -> WinogroundScores:
    """The comparisons of Winoground as the code of the authors of Idefics makes them.

    Source: github.com/huggingface/smollm, vision/m4/evaluation/custom_metrics/image_caption_matching_metrics.py.

    What is odd about it: "text" and "image" have changed places: its text score compares pictures for the same
    caption, its image score captions for the same picture. An example is wrong only if a wrong pair has the higher
    score, so equal scores are right. Its scores are log-probabilities divided by the number of tokens.

    Args and raises: as `winoground`.
    """
    (right_0, wrong_01), (wrong_10, right_1) = _check_winoground(scores)
    text = right_0 >= wrong_01 and right_1 >= wrong_10
    image = right_0 >= wrong_10 and right_1 >= wrong_01
    return WinogroundScores(float(text), float(image), float(text and image))


def _check_winoground(scores: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    if [len(row) for row in scores] != [2, 2]:
        raise BadSetting("Winoground compares 2 captions with 2 pictures; give scores[caption][picture]")
    return scores


def _check_candidates(relevance: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray]:
    gains, values = _as_vector(relevance, "relevance"), _as_vector(scores, "scores")
    _check_same_length(gains, values, "scores")
    if (gains < 0).any():
        raise BadSetting(f"a relevance is {gains.min():g}; give numbers of 0 or more")
    return gains, values


def _as_vector(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or np.isnan(array).any():
        raise BadSetting(f"{name} must be a list of numbers, without NaN")
    return array


def _check_same_length(first: NDArray[np.generic], second: NDArray[np.generic], name: str) -> None:
    if len(first) != len(second):
        raise BadSetting(f"{len(second)} {name} for {len(first)} rows; give one for each")
