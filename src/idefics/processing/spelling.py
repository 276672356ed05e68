"""How a checkpoint's tokens are spelled in bytes, for whoever decides which of them may follow.

Knows no forms and no models.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from idefics.errors import MissingExtra
from idefics.lazy import cached_property
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

LONGEST = 64  # bytes of a token that are thought of where a text is cut into tokens


class Spelling:
    """Each token of a model in bytes. What never stands in a text has none: hidden tokens and those in `never`.

    Attributes:
        bytes_of: for each of the model's ids.
        stop_ids: ids that end an answer.

    Args:
        vocabulary: how many ids the model has; a tokenizer may have more or fewer.
        never: ids that are never chosen.
        hidden: ids that an answer's text leaves out; None: the control tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: int,
        stop_ids: Collection[int],
        never: Collection[int],
        hidden: Collection[int] | None = None,
    ) -> None:
        self.stop_ids = frozenset(stop_ids)
        left_out = tokenizer.special_tokens.control if hidden is None else frozenset(hidden)
        silent = self.stop_ids.union(never, left_out)
        self.bytes_of = [
            b"" if id in silent else tokenizer.decode_bytes([id], hidden=()) for id in range(vocabulary)
        ]
        self._ids = {spelled: id for id, spelled in enumerate(self.bytes_of) if spelled}

    def counts(self, text: bytes) -> list[float]:
        """How many tokens spell at least what follows each place of a text; infinite where it cannot be spelled."""
        fewest = [*[math.inf] * len(text), 0.0]
        for start in reversed(range(len(text))):
            for end in range(start + 1, min(start + LONGEST, len(text)) + 1):
                if fewest[end] + 1 < fewest[start] and text[start:end] in self._ids:
                    fewest[start] = fewest[end] + 1
        return fewest

    def count(self, text: bytes) -> float:
        """How many tokens spell a text at least; infinite where it cannot be spelled."""
        return self.counts(text)[0]

    def tokens(self, text: bytes) -> list[int] | None:
        """The fewest tokens that spell a text, long ones first; None where it cannot be spelled."""
        fewest, ids, start = self.counts(text), list[int](), 0
        if fewest[0] == math.inf:
            return None
        while start < len(text):
            ends = range(min(start + LONGEST, len(text)), start, -1)
            end = next(
                end for end in ends if fewest[end] + 1 == fewest[start] and text[start:end] in self._ids
            )
            ids.append(self._ids[text[start:end]])
            start = end
        return ids

    def holding(self, word: bytes) -> Iterator[int]:
        """Ids of tokens that have a word in them."""
        start = self._joined.find(word)
        while start >= 0:
            number = bisect_left(self._ends, start)
            yield self._sorted[number][1]
            start = self._joined.find(word, self._ends[number])

    def beginning(self, start: bytes) -> Iterator[int]:
        """Ids of tokens that begin so."""
        for number in range(bisect_left(self._sorted, (start, -1)), len(self._sorted)):
            spelled, id = self._sorted[number]
            if not spelled.startswith(start):
                break
            yield id

    @cached_property
    def guidance(self) -> llguidance.LLTokenizer:
        """The tokens as llguidance wants them.

        Raises:
            MissingExtra: it is not installed.
        """
        return guidance(self.bytes_of, sorted(self.stop_ids), self.tokens)

    @cached_property
    def has_all_bytes(self) -> bool:
        """Whether each byte has a token, so that every text can be spelled."""
        return all(bytes([byte]) in self._ids for byte in range(256))

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((spelled, id) for id, spelled in enumerate(self.bytes_of) if spelled)

    @cached_property
    def _joined(self) -> bytes:
        """All tokens in their order, each ended by a byte that no text in UTF-8 has."""
        return b"".join(spelled + b"\xff" for spelled, _ in self._sorted)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each of them ends in it."""
        return [int(end) - 1 for end in np.cumsum([len(spelled) + 1 for spelled, _ in self._sorted])]


def guidance(
    spelled: list[bytes], stop_ids: list[int], cut: Callable[[bytes], list[int] | None]
) -> llguidance.LLTokenizer:
    """Tokens in bytes, of which `stop_ids` end a text and empty ones never stand in it.

    Args:
        cut: a text into tokens, for where only one text can follow.

    Raises:
        MissingExtra: llguidance is not installed.
    """
    try:
        import llguidance
    except ModuleNotFoundError:
        raise MissingExtra("a forced form (regex, choices, schema)", "form") from None

    wrapper = llguidance.TokenizerWrapper(_Tokens(spelled, stop_ids, cut))
    return llguidance.LLTokenizer(wrapper, n_vocab=len(spelled), eos_token=stop_ids)


class _Tokens:
    """A tokenizer as llguidance wants to see one."""

    def __init__(
        self, spelled: list[bytes], stop_ids: list[int], cut: Callable[[bytes], list[int] | None]
    ) -> None:
        self.cut = cut
        self.eos_token_id, self.bos_token_id, self.special_token_ids = stop_ids[0], None, stop_ids
        self.tokens = [b"<end>" if id in stop_ids else one for id, one in enumerate(spelled)]

    def __call__(self, text: bytes) -> list[int]:
        return self.cut(text) or []
