"""Accuracy of answers that are right or wrong: exact match of texts, and the most likely of several labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from idefics.errors import BadSetting


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals one of the references, 0 otherwise.

    Case, repeated spaces and full stops at the end do not count: "A red  Star." equals "a red star". No paper
    defines this; it is the metric of data sets that define none.
    """
    return float(_normalize(answer) in map(_normalize, references))


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(". ")


def most_likely(log_probabilities: Sequence[float]) -> int:
    """The index of the highest log-probability, the first of several equal ones.

    Source: argmax in github.com/huggingface/smollm,
    vision/m4/evaluation/custom_metrics/unfolded_classification_metrics.py.

    What is odd about it: labels with equal log-probabilities, such as two that are spelled alike, favour the one
    listed first.

    Raises:
        BadSetting: there is no log-probability, or one is not a number.
    """
    if not len(log_probabilities) or np.isnan(log_probabilities).any():
        raise BadSetting(
            f"log-probabilities are {list(log_probabilities)}; give at least one, and only numbers"
        )
    return int(np.argmax(log_probabilities))


def choice_accuracy(log_probabilities: Sequence[float], correct: int) -> float:
    """1 if the label with the index `correct` is the most likely one, as `most_likely` says, 0 otherwise."""
    return float(most_likely(log_probabilities) == correct)
