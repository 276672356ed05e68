"""A tokenizer in which special tokens have secret names, so that their own names are plain characters to it.

Knows vocabularies and merges; does not know which text is trusted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from idefics.calls import whole_characters
from idefics.errors import TextTooLong

if TYPE_CHECKING:
    import tokenizers


LONG_TEXT = 4096  # characters from which on a text is encoded while other threads run
HUGE_TEXT = 1 << 16  # from which on its pieces are counted first


class TokenAliases:
    """A copy of a tokenizer with an alias for each of some tokens.

    An alias is digits between private-use characters, which no normaliser that we know touches. They hold a random
    number of this object: nobody outside it can write one.

    Attributes:
        of: a token's name -> its alias.

    Args:
        library: what is copied.
        named: the tokens by id.
        added: those of the ids that the file itself adds to the vocabulary.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, named: Mapping[int, str], added: Collection[int]
    ) -> None:
        import tokenizers

        secret = str(secrets.randbits(128))
        self.of = {name: f"\ue000{secret}\ue001{i}\ue002" for i, name in enumerate(sorted(named.values()))}
        raw = json.loads(library.to_str())
        raw["post_processor"] = None
        for token in raw["added_tokens"]:
            token["content"] = self.of[token["content"]]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        raw["added_tokens"] += [
            {"id": id, "content": self.of[name], **flags} for id, name in named.items() if id not in added
        ]
        model = raw["model"]
        model["vocab"] = {self.of.get(token, token): id for token, id in model["vocab"].items()}
        if model.get("unk_token") in self.of:
            model["unk_token"] = self.of[model["unk_token"]]
        # A merge that builds or uses such a token would bring its id back out of plain characters.
        if "merges" in model:
            model["merges"] = [
                (left, right)
                for left, right in model["merges"]
                if self.of.keys().isdisjoint((left, right, left + right))
            ]
        self._library = tokenizers.Tokenizer.from_str(json.dumps(raw))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which only aliases stand for those tokens."""
        ids: list[int] = encoding_of(self._library, text).ids
        return ids


def refuse_long(library: tokenizers.Tokenizer, text: str, max_tokens: int) -> None:
    """Refuses a text that is far too long before all of it is tokenized.

    Its pieces are counted one by one. A cut can change the tokens around it, so that a text is refused here only once
    its pieces have twice as many tokens as may be. What is left has few tokens: the library frees an encoding with the
    interpreter's lock, which took 40 to 70 ms for a megabyte of text.

    Raises:
        TextTooLong: the pieces have more than twice `max_tokens`.
    """
    count = 0
    for start in range(0, len(text), LONG_TEXT):
        count += len(encoding_of(library, text[start : start + LONG_TEXT]))
        if count > 2 * max_tokens:
            raise TextTooLong(len(text), len(text), max_tokens)


def encoding_of(library: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Of a long text without the interpreter's lock, which `encode` holds to the end: seconds for a megabyte."""
    if not text.isascii():
        whole_characters("the prompt", text)
    if len(text) < LONG_TEXT:
        return library.encode(text, add_special_tokens=False)
    return library.encode_batch([text], add_special_tokens=False)[0]
