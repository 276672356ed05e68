"""Texts that cannot fit a model are refused by their characters, in milliseconds and before they are tokenized.

Knows how tokens are spelled and how many the model reads; does not know prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from idefics.errors import TextTooLong
from idefics.lazy import cached_property

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from idefics.processing.tokenizer import Tokenizer

BLOCK_BYTES = 1 << 15  # bytes that are counted at once
MAX_BYTES_PER_CHARACTER = 4  # of a character, at most
LOSSLESS_NORMALIZERS = ("Prepend", "Replace")
LOSSLESS_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Metaspace", "Split")


class TextLimit:
    """The least number of tokens that texts can have, against the number that a model reads.

    A text is the joined spelling of its tokens, so each of its bytes costs at least 1 / (the bytes of the longest token
    that holds such a byte): all bytes of one token together cost at most 1. Nothing is refused that could fit.

    Args:
        tokenizer: the checkpoint's.
        max_tokens: what the model reads; None: there is no limit.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int | None) -> None:
        self._tokenizer, self.max_tokens = tokenizer, max_tokens

    def check(self, texts: Iterable[str]) -> None:
        """Raises TextTooLong where texts, joined in one prompt, cannot fit, however they are tokenized."""
        texts = list(texts)
        num_characters, max_tokens = sum(map(len, texts)), self.max_tokens
        if (
            max_tokens is None
            or num_characters * MAX_BYTES_PER_CHARACTER <= max_tokens
            or not self._tokenizer.is_lossless
        ):
            return
        min_tokens = 0.0
        for text in texts:
            counted = "".join(text.split()) if self._tokenizer.absorbs_spaces else text
            data = np.frombuffer(counted.encode(errors="surrogatepass"), np.uint8)
            for start in range(0, len(data), BLOCK_BYTES):
                min_tokens += float(
                    np.bincount(data[start : start + BLOCK_BYTES], minlength=256) @ self._min_cost_by_byte
                )
                if min_tokens > max_tokens + 1:  # a whole token more than rounding can make of it
                    raise TextTooLong(num_characters, self._max_characters, max_tokens)

    def precompute(self) -> None:
        """Reads the vocabulary now, which takes about a second of a large one, and not with the first long text."""
        if self._tokenizer.is_lossless:
            _ = self._min_cost_by_byte

    @cached_property
    def _max_token_length_by_byte(self) -> NDArray[np.float64]:
        """(256,) for each byte, the bytes of the longest token that holds it; infinite where a byte may be dropped."""
        all_token_bytes = {
            self._tokenizer.decode_bytes([id], hidden_ids=()) for id in self._tokenizer.get_vocab().values()
        }
        lengths, seen_bytes = np.full(256, np.inf), set[int]()
        for token in sorted(all_token_bytes, key=len, reverse=True):
            for byte in set(token) - seen_bytes:
                lengths[byte] = len(token) if bytes([byte]) in all_token_bytes else np.inf
            seen_bytes.update(token)
        return lengths

    @cached_property
    def _min_cost_by_byte(self) -> NDArray[np.float64]:
        return 1 / self._max_token_length_by_byte

    @property
    def _max_characters(self) -> int:
        """Of a text of whatever words: what the positions hold of the longest token."""
        return (self.max_tokens or 0) * int(
            self._max_token_length_by_byte[np.isfinite(self._max_token_length_by_byte)].max(initial=1)
        )


def is_lossless(file: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` drops nothing of a text but blanks: its tokens' bytes joined are the text's.

    Unknown normalizers and pre-tokenizers may drop characters, and so does a model that knows no bytes.
    """
    normalizers = _component_steps(file.get("normalizer"), "normalizers")
    pre_tokenizers = _component_steps(file.get("pre_tokenizer"), "pretokenizers")
    return (
        all(step["type"] in LOSSLESS_NORMALIZERS for step in normalizers)
        and all(
            step["type"] in LOSSLESS_PRE_TOKENIZERS and step.get("behavior") != "Removed"
            for step in pre_tokenizers
        )
        and all(
            step["pattern"] == {"String": " "} and step["content"]
            for step in normalizers
            if "pattern" in step
        )
        and (
            bool(file["model"].get("byte_fallback"))
            or any(step["type"] == "ByteLevel" for step in pre_tokenizers)
        )
    )


def _component_steps(component: Mapping[str, Any] | None, list_key: str) -> list[Mapping[str, Any]]:
    return [] if component is None else list(component.get(list_key, [component]))
