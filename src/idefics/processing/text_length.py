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

BLOCK = 1 << 15  # bytes that are counted at once
UTF8_BYTES = 4  # of a character, at most
NORMALIZERS = ("Prepend", "Replace")
PRE_TOKENIZERS = ("ByteLevel", "Digits", "Metaspace", "Split")


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
        characters, most = sum(map(len, texts)), self.max_tokens
        if most is None or characters * UTF8_BYTES <= most or not self._tokenizer.spells_whole_text:
            return
        cost = 0.0
        for text in texts:
            counted = "".join(text.split()) if self._tokenizer.swallows_blanks else text
            data = np.frombuffer(counted.encode(errors="surrogatepass"), np.uint8)
            for start in range(0, len(data), BLOCK):
                cost += float(np.bincount(data[start : start + BLOCK], minlength=256) @ self._costs)
                if cost > most + 1:  # a whole token more than rounding can make of it
                    raise TextTooLong(characters, self._max_characters, most)

    def prepare(self) -> None:
        """Reads the vocabulary now, which takes about a second of a large one, and not with the first long text."""
        if self._tokenizer.spells_whole_text:
            _ = self._costs

    @cached_property
    def _lengths(self) -> NDArray[np.float64]:
        """(256,) for each byte, the bytes of the longest token that holds it; infinite where a byte may be dropped."""
        spelled = {
            self._tokenizer.decode_bytes([id], hidden=()) for id in self._tokenizer.vocabulary().values()
        }
        lengths, known = np.full(256, np.inf), set[int]()
        for token in sorted(spelled, key=len, reverse=True):
            for byte in set(token) - known:
                lengths[byte] = len(token) if bytes([byte]) in spelled else np.inf
            known.update(token)
        return lengths

    @cached_property
    def _costs(self) -> NDArray[np.float64]:
        return 1 / self._lengths

    @property
    def _max_characters(self) -> int:
        """Of a text of whatever words: what the positions hold of the longest token."""
        return (self.max_tokens or 0) * int(self._lengths[np.isfinite(self._lengths)].max(initial=1))


def spells_whole_text(file: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` drops nothing of a text but blanks: its tokens' bytes joined are the text's.

    Unknown normalizers and pre-tokenizers may drop characters, and so does a model that knows no bytes.
    """
    normalizers = _steps(file.get("normalizer"), "normalizers")
    pre_tokenizers = _steps(file.get("pre_tokenizer"), "pretokenizers")
    return (
        all(step["type"] in NORMALIZERS for step in normalizers)
        and all(
            step["type"] in PRE_TOKENIZERS and step.get("behavior") != "Removed" for step in pre_tokenizers
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


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    return [] if step is None else list(step.get(inner, [step]))
