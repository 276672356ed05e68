"""CIDEr-D, the similarity of a caption to several reference captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from idefics.errors import BadSetting
from idefics.evaluate.metrics.ptb_tokenizer import tokenize_ptb

_MAX_N = 4
_LENGTH_SIGMA = 6.0

NGram = tuple[str, ...]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Scores the caption of each picture against the references of that picture; the mean is the score of all.

    Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (arXiv 1411.5726), in the variant
    D as pycocoevalcap computes it (github.com/salaniz/pycocoevalcap, cider/cider_scorer.py), after PTB
    tokenisation.

    What is odd about it:
        - The weight of an n-gram depends upon all pictures that are scored together: scores of different
          selections, such as a part of a data set and the whole of it, cannot be compared. A single picture scores
          0, as every n-gram then occurs in all pictures.
        - A score is between 0 and 10, not 1; published tables multiply the mean by 100.

    Args:
        captions: a caption for each picture, as generated.
        references: the reference captions of each picture, at least one.

    Returns:
        A score for each picture, in the same order.

    Raises:
        BadSetting: the numbers of captions and pictures differ, or a picture has no reference.
    """
    if len(captions) != len(references):
        raise BadSetting(
            f"{len(captions)} captions for {len(references)} lists of references; give one for each"
        )
    tokenized = [[tokenize_ptb(text) for text in texts] for texts in references]
    return cider_d_of_tokens([tokenize_ptb(caption) for caption in captions], tokenized)


def cider_d_of_tokens(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """Scores captions as `cider_d` does, given as lists of tokens instead of texts.

    Raises:
        BadSetting: a picture has no reference.
    """
    counts = [[_count_ngrams(tokens) for tokens in texts] for texts in references]
    if not all(counts):
        raise BadSetting(
            f"picture {counts.index([]) + 1} has no reference caption; CIDEr-D needs at least one"
        )
    document_frequency = Counter(chain.from_iterable(set().union(*texts) for texts in counts))
    log_pictures = math.log(len(counts)) if counts else 0.0
    inverse = {ngram: log_pictures - math.log(pictures) for ngram, pictures in document_frequency.items()}
    scores = []
    for caption, texts in zip(captions, counts, strict=True):
        vector = _TfIdf.of(_count_ngrams(caption), inverse, log_pictures)
        total = sum(_similarity(vector, _TfIdf.of(text, inverse, log_pictures)) for text in texts)
        scores.append(10.0 * total / len(texts))
    return scores


def _count_ngrams(tokens: Sequence[str]) -> Counter[NGram]:
    """How often each n-gram of 1 to 4 tokens occurs."""
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, _MAX_N + 1) for start in range(len(tokens) - n + 1)
    )


@dataclass(frozen=True, slots=True)
class _TfIdf:
    """The n-grams of a text, weighted by their number and rarity; one vector for each n.

    Attributes:
        weights: weight of each n-gram; at index 0 those of single tokens.
        norms: Euclidean length of each vector.
        num_bigrams: stands for the length of the text.
    """

    weights: tuple[dict[NGram, float], ...]
    norms: tuple[float, ...]
    num_bigrams: int

    @classmethod
    def of(cls, counts: Counter[NGram], inverse: Mapping[NGram, float], unseen: float) -> _TfIdf:
        """Weights counted n-grams.

        Args:
            counts: how often each n-gram occurs in the text.
            inverse: logarithm of the inverse document frequency of every n-gram of the references.
            unseen: the same for n-grams that no reference has: as if one picture had them.
        """
        weights: tuple[dict[NGram, float], ...] = tuple({} for _ in range(_MAX_N))
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * inverse.get(ngram, unseen)
        norms = tuple(math.sqrt(sum(weight**2 for weight in vector.values())) for vector in weights)
        return cls(weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(caption: _TfIdf, reference: _TfIdf) -> float:
    """Mean over n of the cosine with clipped weights, times a penalty for another length; 0 to 1."""
    total = 0.0
    for n in range(_MAX_N):
        norms = caption.norms[n] * reference.norms[n]
        if norms:
            shared = caption.weights[n].keys() & reference.weights[n].keys()
            clipped = sum(
                min(caption.weights[n][ngram], reference.weights[n][ngram]) * reference.weights[n][ngram]
                for ngram in shared
            )
            total += clipped / norms
    difference = caption.num_bigrams - reference.num_bigrams
    return total / _MAX_N * math.exp(-(difference**2) / (2 * _LENGTH_SIGMA**2))
