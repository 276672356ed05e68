"""A tokenizer in which special tokens have secret names, so that their own names are plain characters to it.

Knows vocabularies and merges; does not know which text is trusted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from idefics.errors import TextTooLong
from idefics.validation import reject_lone_surrogates

if TYPE_CHECKING:
    import tokenizers


LONG_TEXT_CHARACTERS = 4096  # characters from which on a text is encoded while other threads run
HUGE_TEXT_CHARACTERS = 1 << 16  # from which on its pieces are counted first


class TokenAliases:
    """A copy of a tokenizer with an alias for each of some tokens.

    An alias is digits between private-use characters, which no normaliser that we know touches. They hold a random
    number of this object: nobody outside it can write one.

    Attributes:
        alias_by_token: a token's name -> its alias.

    Args:
        tokenizer: what is copied.
        token_by_id: the tokens by id.
        added_ids: those of the ids that the file itself adds to the vocabulary.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, token_by_id: Mapping[int, str], added_ids: Collection[int]
    ) -> None:
        import tokenizers

        secret = str(secrets.randbits(128))
        self.alias_by_token = {
            name: f"\ue000{secret}\ue001{i}\ue002" for i, name in enumerate(sorted(token_by_id.values()))
        }
        raw = json.loads(tokenizer.to_str())
        raw["post_processor"] = None
        for token in raw["added_tokens"]:
            token["content"] = self.alias_by_token[token["content"]]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        raw["added_tokens"] += [
            {"id": id, "content": self.alias_by_token[name], **flags}
            for id, name in token_by_id.items()
            if id not in added_ids
        ]
        model = raw["model"]
        model["vocab"] = {self.alias_by_token.get(token, token): id for token, id in model["vocab"].items()}
        if model.get("unk_token") in self.alias_by_token:
            model["unk_token"] = self.alias_by_token[model["unk_token"]]
        # A merge that builds or uses such a token would bring its id back out of plain characters.
        if "merges" in model:
            model["merges"] = [
                (left, right)
                for left, right in model["merges"]
                if self.alias_by_token.keys().isdisjoint((left, right, left + right))
            ]
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which only aliases stand for those tokens."""
        ids: list[int] = encode_without_gil(self._tokenizer, text).ids
        return ids


def reject_long_text(tokenizer: tokenizers.Tokenizer, text: str, max_tokens: int) -> None:
    """Refuses a text that is far too long before all of it is tokenized.

    Its pieces are counted one by one. A cut can change the tokens around it, so that a text is refused here only once
    its pieces have twice as many tokens as may be. What is left has few tokens: the library frees an encoding with the
    interpreter's lock, which took 40 to 70 ms for a megabyte of text.

    Raises:
        TextTooLong: the pieces have more than twice `max_tokens`.
    """
    count = 0
    for start in range(0, len(text), LONG_TEXT_CHARACTERS):
        count += len(encode_without_gil(tokenizer, text[start : start + LONG_TEXT_CHARACTERS]))
        if count > 2 * max_tokens:
            raise TextTooLong(len(text), len(text), max_tokens)


def encode_without_gil(tokenizer: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Of a long text without the interpreter's lock, which `encode` holds to the end: seconds for a megabyte."""
    if not text.isascii():
        reject_lone_surrogates("the prompt", text)
    if len(text) < LONG_TEXT_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]
