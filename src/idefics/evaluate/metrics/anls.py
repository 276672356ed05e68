"""ANLS, the average normalised Levenshtein similarity, of questions about documents."""

from __future__ import annotations

from collections.abc import Sequence

_THRESHOLD = 0.5


def anls(answer: str, references: Sequence[str]) -> float:
    """1 minus the share of characters to change between the answer and the nearest reference; 0 if that is half or
    more.

    Source: Biten et al., "Scene Text Visual Question Answering" (arXiv 1905.13648), in the form in which the
    authors of Idefics computed DocVQA (github.com/huggingface/smollm,
    vision/m4/evaluation/custom_metrics/doc_vqa_metrics.py).

    What is odd about it:
        - The answer loses spaces around it and then full stops around it; references lose nothing. Both become
          lower case.
        - An empty answer scores 0, even if a reference is empty.
        - A similarity of exactly 0.5 scores 0, as in the paper; the script of the DocVQA competition lets it count.
    """
    answer = answer.strip().strip(".").lower()
    if not answer:
        return 0.0
    return max((_thresholded_similarity(answer, reference.lower()) for reference in references), default=0.0)


def _thresholded_similarity(answer: str, reference: str) -> float:
    """The normalised similarity of two texts, the first of them not empty; 0 unless above one half."""
    distance = levenshtein(answer, reference) / max(len(answer), len(reference))
    return 1.0 - distance if distance < _THRESHOLD else 0.0


def levenshtein(first: str, second: str) -> int:
    """The least number of characters to insert, delete or replace that turns one text into the other."""
    row = list(range(len(second) + 1))
    for i, character in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != other))
    return row[-1]
