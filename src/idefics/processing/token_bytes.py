"""The bytes of each token of a model, for token constraints (structured output, banned strings)."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from idefics.errors import MissingExtra
from idefics.lazy import cached_property
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MAX_TOKEN_BYTES = 64  # longer tokens are not used to spell a text
TOKEN_START = b"\xff"  # before each of the tokens that are searched; does not occur in UTF-8


class TokenBytes:
    """The bytes of each token of a model, and lookups of tokens by their bytes.

    Attributes:
        bytes_by_id: the bytes of each id of the model; empty for stop ids, banned and hidden tokens.
        stop_ids: ids that end an answer.

    Args:
        tokenizer: the checkpoint's tokenizer.
        vocab_size: how many ids the model has; the tokenizer may have more or fewer.
        banned_ids: ids that are never chosen.
        hidden_ids: ids that an answer's text leaves out; None: the control tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_ids: Collection[int],
        banned_ids: Collection[int],
        hidden_ids: Collection[int] | None = None,
    ) -> None:
        self.stop_ids = frozenset(stop_ids)
        omitted_ids = (
            tokenizer.special_ids_by_kind.control_ids if hidden_ids is None else frozenset(hidden_ids)
        )
        ids_without_bytes = self.stop_ids.union(banned_ids, omitted_ids)
        self.bytes_by_id = [
            b"" if id in ids_without_bytes else tokenizer.decode_bytes([id], hidden_ids=())
            for id in range(vocab_size)
        ]
        self._id_by_bytes = {spelled: id for id, spelled in enumerate(self.bytes_by_id) if spelled}

    def min_token_counts(self, text: bytes) -> list[float]:
        """For each position of a text the fewest tokens that spell the rest; infinite where no tokens do."""
        min_counts = [*[math.inf] * len(text), 0.0]
        for start in reversed(range(len(text))):
            for end in range(start + 1, min(start + MAX_TOKEN_BYTES, len(text)) + 1):
                if min_counts[end] + 1 < min_counts[start] and text[start:end] in self._id_by_bytes:
                    min_counts[start] = min_counts[end] + 1
        return min_counts

    def tokenize(self, text: bytes) -> list[int] | None:
        """The shortest sequence of ids that spells a text, long tokens first; None where no tokens do."""
        min_counts, ids, start = self.min_token_counts(text), list[int](), 0
        if min_counts[0] == math.inf:
            return None
        while start < len(text):
            ends = range(min(start + MAX_TOKEN_BYTES, len(text)), start, -1)
            end = next(
                end
                for end in ends
                if min_counts[end] + 1 == min_counts[start] and text[start:end] in self._id_by_bytes
            )
            ids.append(self._id_by_bytes[text[start:end]])
            start = end
        return ids

    def find_ids(self, pattern: bytes) -> np.ndarray:
        """Ids of the tokens whose bytes contain `pattern`; a leading `TOKEN_START` matches the beginning of a token.

        A token that contains the pattern several times may be returned several times.
        """
        positions = [match.start() for match in re.finditer(re.escape(pattern), self._joined_tokens)]
        return np.searchsorted(self._token_starts, positions, side="right") - 1

    @cached_property
    def llguidance_tokenizer(self) -> llguidance.LLTokenizer:
        """The tokens as a tokenizer of llguidance.

        Raises:
            MissingExtra: llguidance is not installed.
        """
        try:
            import llguidance
        except ModuleNotFoundError:
            raise MissingExtra("structured output (regex, choices, schema)", "form") from None

        wrapper = llguidance.TokenizerWrapper(_LlguidanceTokens(self))
        return llguidance.LLTokenizer(wrapper, n_vocab=len(self.bytes_by_id), eos_token=sorted(self.stop_ids))

    @cached_property
    def has_all_bytes(self) -> bool:
        """Whether each single byte is a token, so that tokens can spell every text."""
        return all(bytes([byte]) in self._id_by_bytes for byte in range(256))

    @cached_property
    def _joined_tokens(self) -> bytes:
        """The bytes of all tokens joined, each after a `TOKEN_START`."""
        return b"".join(TOKEN_START + spelled for spelled in self.bytes_by_id)

    @cached_property
    def _token_starts(self) -> np.ndarray:
        """(V,) int: where each id's bytes begin in `_joined_tokens`."""
        return np.cumsum([0, *(len(spelled) + 1 for spelled in self.bytes_by_id)])[:-1]


class _LlguidanceTokens:
    """The tokenizer interface that `llguidance.TokenizerWrapper` expects."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self.special_token_ids = sorted(token_bytes.stop_ids)
        self.eos_token_id, self.bos_token_id = self.special_token_ids[0], None
        self.tokens = [
            b"<end>" if id in token_bytes.stop_ids else one for id, one in enumerate(token_bytes.bytes_by_id)
        ]

    def __call__(self, text: bytes) -> list[int]:
        return self._token_bytes.tokenize(text) or []
