"""Groups the tokens of an answer into words, and those of a ranking into labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idefics.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenGroup:
    """The tokens of one word or label.

    Attributes:
        text: the word or label, without blanks at its ends.
        ids: its token ids.
        start: the index of its first token among all T tokens.
    """

    text: str
    ids: tuple[int, ...]
    start: int

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of (T, ...) values over the group's tokens."""
        return np.asarray(values[self.start : self.start + len(self.ids)].sum(axis=0))


def group_words(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[TokenGroup]:
    """Groups the tokens of an answer into its words, which begin at blanks.

    Args:
        ids: the tokens of the answer, as its continuation has them: a blank may come before the text.
        text: the answer; of an answer without any blank it is the only word.
    """
    words: list[tuple[int, bytes]] = []  # index of the first token, and the bytes of the word so far
    for index, id in enumerate(ids):
        data = tokenizer.decode_bytes([id])
        if not words or (data[:1].isspace() and words[-1][1].strip()):
            words.append((index, data))
        else:
            words[-1] = (words[-1][0], words[-1][1] + data)
    ends = [start for start, _ in words[1:]] + [len(ids)]
    groups = [
        TokenGroup(data.decode("utf-8", errors="replace").strip(), tuple(ids[start:end]), start)
        for (start, data), end in zip(words, ends, strict=True)
    ]
    return groups if len(groups) > 1 else [TokenGroup(text.strip(), tuple(ids), 0)]


def group_labels(labels: Sequence[str], continuations: Sequence[Sequence[int]]) -> list[TokenGroup]:
    """The tokens of each label, of all labels one after another."""
    groups, start = [], 0
    for label, ids in zip(labels, continuations, strict=True):
        groups.append(TokenGroup(label, tuple(ids), start))
        start += len(ids)
    return groups
