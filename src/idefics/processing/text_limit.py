"""Refuses texts that are too long for a model by counting their bytes, in milliseconds and before tokenizing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from idefics.errors import TextTooLong
from idefics.lazy import cached_property

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from idefics.processing.tokenizer import Tokenizer

BLOCK_BYTES = 1 << 15  # bytes counted in one NumPy call
MAX_BYTES_PER_CHARACTER = 4
LOSSLESS_NORMALIZERS = ("Prepend", "Replace")
LOSSLESS_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Metaspace", "Split")


@dataclass(frozen=True, eq=False)
class TextLimit:
    """Compares a lower bound on the number of tokens of a text with the number that a model reads.

    A text's tokens joined are its bytes. If each byte is counted as 1 / (length of the longest token that has this
    byte value), the bytes of one token sum to at most 1, and so the sum over the text is at most its number of tokens:
    no text that fits is refused.

    Attributes:
        tokenizer: the checkpoint's tokenizer.
        max_tokens: how many tokens the model reads; None: no limit.
    """

    tokenizer: Tokenizer
    max_tokens: int | None

    def check(self, texts: Iterable[str]) -> None:
        """Raises TextTooLong if the texts of one prompt together must have more than `max_tokens` tokens."""
        texts = list(texts)
        num_characters, max_tokens = sum(map(len, texts)), self.max_tokens
        if (
            max_tokens is None
            or num_characters * MAX_BYTES_PER_CHARACTER <= max_tokens
            or not self.tokenizer.preserves_non_space_text
        ):
            return
        min_tokens = 0.0
        for text in texts:
            counted = "".join(text.split()) if self.tokenizer.absorbs_spaces else text
            data = np.frombuffer(counted.encode(errors="surrogatepass"), np.uint8)
            for start in range(0, len(data), BLOCK_BYTES):
                min_tokens += float(
                    np.bincount(data[start : start + BLOCK_BYTES], minlength=256) @ self._min_cost_by_byte
                )
                if min_tokens > max_tokens + 1:  # one token of tolerance for rounding
                    raise TextTooLong(num_characters, self._max_characters, max_tokens)

    def precompute_byte_costs(self) -> None:
        """Computes the bytes' costs now rather than with the first long text: about a second for a large vocabulary."""
        if self.tokenizer.preserves_non_space_text:
            _ = self._min_cost_by_byte

    @cached_property
    def _min_cost_by_byte(self) -> NDArray[np.float64]:
        """(256,): the part of a token that each byte value counts as; 0 where a byte may be dropped."""
        all_token_bytes = {
            self.tokenizer.decode_bytes([id], hidden_ids=()) for id in self.tokenizer.get_vocab().values()
        }
        costs = np.zeros(256)
        for token in sorted(all_token_bytes, key=len):
            for byte in set(token):
                costs[byte] = 1 / len(token) if bytes([byte]) in all_token_bytes else 0
        return costs

    @property
    def _max_characters(self) -> int:
        """The most characters that `max_tokens` tokens can have: each as long as the longest token."""
        costs = self._min_cost_by_byte
        return (self.max_tokens or 0) * round(1 / float(costs[costs > 0].min(initial=1)))


def preserves_non_space_text(tokenizer_json: Mapping[str, Any]) -> bool:
    """Whether a tokenizer keeps every character that is no space: a text's tokens, joined, are the text.

    Unknown normalizers and pre-tokenizers may drop characters, and so does a vocabulary without byte tokens.

    Args:
        tokenizer_json: the content of a `tokenizer.json`.
    """
    normalizers = _component_steps(tokenizer_json.get("normalizer"), "normalizers")
    pre_tokenizers = _component_steps(tokenizer_json.get("pre_tokenizer"), "pretokenizers")
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
            bool(tokenizer_json["model"].get("byte_fallback"))
            or any(step["type"] == "ByteLevel" for step in pre_tokenizers)
        )
    )


def _component_steps(component: Mapping[str, Any] | None, list_key: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer of `tokenizer.json`: of a sequence, those under `list_key`.

    Any other component is one step; None has none.
    """
    return [] if component is None else list(component.get(list_key, [component]))
