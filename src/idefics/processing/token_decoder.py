"""Decodes single tokens into bytes, by the "decoder" of a `tokenizer.json`: byte-level BPE, or SentencePiece."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from idefics.errors import UnsupportedModel

if TYPE_CHECKING:
    import tokenizers

SENTENCEPIECE_SPACE = "\u2581"  # how SentencePiece spells a space
SENTENCEPIECE_BYTE_PATTERN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of a character without a token


class TokenByteDecoder:
    """Decodes single tokens into bytes; the bytes of a text's tokens, joined, are the UTF-8 of the text.

    Attributes:
        strips_leading_space: whether a decoded text loses one space at its very beginning, as SentencePiece adds one.

    Args:
        tokenizer: the tokenizer of the file.
        decoder: the "decoder" of the file.

    Raises:
        UnsupportedModel: the decoder is of another kind.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level, self.strips_leading_space = _parse_decoder(decoder)
        # Added tokens are spelled as they are, apart from those that the vocabulary spells in its own way.
        self._plain_text_by_id = {
            id: token.content
            for id, token in tokenizer.get_added_tokens_decoder().items()
            if not token.normalized or token.special or tokenizer.id_to_token(id) == token.content
        }

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a token, which may be part of a character; empty where the tokenizer has no such id."""
        if id in self._plain_text_by_id:
            return self._plain_text_by_id[id].encode()
        token = self._tokenizer.id_to_token(id)
        if token is None:  # models have more rows than their tokenizers have tokens
            return b""
        if self._is_byte_level and BYTE_BY_CHARACTER.keys() >= set(token):
            return bytes(BYTE_BY_CHARACTER[character] for character in token)
        if byte := SENTENCEPIECE_BYTE_PATTERN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace(SENTENCEPIECE_SPACE, " ").encode()


def _parse_decoder(decoder: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """Parses the "decoder" of a `tokenizer.json`: returns (is_byte_level, strips_leading_space).

    Raises:
        UnsupportedModel: the decoder is of another kind.
    """
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    step_by_type = {step["type"]: step for step in steps}
    if set(step_by_type) == {"ByteLevel"}:
        return True, False
    if step_by_type and set(step_by_type) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strips_start = step_by_type.get("Strip", {}).get("start", 0) > 0
        metaspace_prepends = step_by_type.get("Metaspace", {}).get("prepend_scheme", "never") != "never"
        return False, strips_start or metaspace_prepends
    raise UnsupportedModel(
        f"its decoder is {'+'.join(step_by_type) or 'missing'}; "
        "only byte-level and SentencePiece-like tokenizers are known"
    )


# GPT-2's spelling of bytes (its encoder.py): printable ones as themselves, others from U+0100 on.
PRINTABLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHER_BYTES = [byte for byte in range(256) if byte not in PRINTABLE_BYTES]
BYTE_BY_CHARACTER = {chr(byte): byte for byte in PRINTABLE_BYTES} | {
    chr(0x100 + index): byte for index, byte in enumerate(OTHER_BYTES)
}
