"""A tokenizer in which special tokens have secret aliases, so that their real names are tokenized as plain characters.

Works on vocabularies and merges; does not decide which text is trusted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from idefics.errors import TextTooLong
from idefics.validation import reject_lone_surrogates

if TYPE_CHECKING:
    import tokenizers


LONG_TEXT_CHARACTERS = 4096  # longer texts are encoded without the GIL
HUGE_TEXT_CHARACTERS = 1 << 16  # of longer texts the tokens are counted piece by piece first


class AliasedTokenizer:
    """A copy of a tokenizer that recognises some tokens only by secret random aliases instead of their names.

    An alias is a random number of this object and an index between private-use characters, which no known normalizer
    changes: no text can contain one by accident or intent.

    Attributes:
        alias_by_token: a token's name -> its alias.

    Args:
        tokenizer: the tokenizer to copy.
        token_by_id: the tokens that get aliases, by id.
        added_ids: ids of the file's added tokens.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, token_by_id: Mapping[int, str], added_ids: Collection[int]
    ) -> None:
        import tokenizers

        self._token_by_id = token_by_id
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
        # A merge that makes or uses such a token would produce its id from plain characters.
        if "merges" in model:
            model["merges"] = [
                (left, right)
                for left, right in model["merges"]
                if self.alias_by_token.keys().isdisjoint((left, right, left + right))
            ]
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))

    def encode(self, text: str, recognized: Iterable[tuple[int, int, int]]) -> list[int]:
        """Ids of a text with special tokens only at the given places; elsewhere their names are plain characters.

        Args:
            recognized: (start, end, id) of each recognised token, in characters of `text`.
        """
        aliased_text, last = "", 0
        for start, end, id in recognized:
            aliased_text += text[last:start] + self.alias_by_token[self._token_by_id[id]]
            last = end
        ids: list[int] = encode_without_gil(self._tokenizer, aliased_text + text[last:]).ids
        return ids


def reject_long_text(tokenizer: tokenizers.Tokenizer, text: str, max_tokens: int) -> None:
    """Raises TextTooLong for a text that is far too long, before all of it is tokenized.

    The tokens of its pieces are counted one piece after another. A cut can change the tokens around it, so that the
    text is refused only when its pieces have more than twice `max_tokens`. Texts that pass have few tokens, which keeps
    the time short for which the library holds the GIL to free an encoding (40 to 70 ms for a megabyte of text).

    Raises:
        TextTooLong: the pieces have more than twice `max_tokens`.
    """
    count = 0
    for start in range(0, len(text), LONG_TEXT_CHARACTERS):
        count += len(encode_without_gil(tokenizer, text[start : start + LONG_TEXT_CHARACTERS]))
        if count > 2 * max_tokens:
            raise TextTooLong(len(text), len(text), max_tokens)


def encode_without_gil(tokenizer: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Encodes a text, without added special tokens; a long one without holding the GIL.

    The library's `encode` would hold it for seconds per megabyte.
    """
    if not text.isascii():
        reject_lone_surrogates("the prompt", text)
    if len(text) < LONG_TEXT_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]
