"""How likely tokens were, as OpenAI's clients read it."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from idefics.messages import Alternative, Answer, Delta
from idefics.processing.tokenizer import Tokenizer

LEAST = -9999.0  # stands for what cannot be, since JSON knows no infinity


def content(tokenizer: Tokenizer, said: Answer | Delta) -> list[dict[str, Any]] | None:
    """Each token with its log-probability and those of the likeliest in its place; None where it was not asked for."""
    if said.logprobs is None:
        return None
    return [
        {
            **_token(tokenizer, id, logprob),
            "top_logprobs": [_token(tokenizer, one.token, one.logprob) for one in top],
        }
        for id, logprob, top in _rows(said)
    ]


class TokenTexts:
    """The text of each token of an answer, piece by piece; joined they are the answer's text.

    A character that several tokens spell is the text of the last of them; a space that a form leaves out is of none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_begun = False

    def of(self, said: Answer | Delta) -> list[str]:
        """The texts of a whole answer's tokens, or of those that a delta adds."""
        spelled = (self.tokenizer.decode_bytes([id], hidden=()) for id in said.tokens)
        texts = [self._characters.decode(piece) for piece in spelled]
        if texts and isinstance(said, Answer):
            texts[-1] += self._characters.decode(b"", final=True)
        if texts and not self._has_begun and not said.text.startswith(" "):
            texts[0] = texts[0].removeprefix(" ")
        self._has_begun = True
        return texts


def legacy(texts: TokenTexts, said: Answer | Delta, offset: int) -> dict[str, Any] | None:
    """The same as `/v1/completions` has it; `offset` is where the text begins in the whole answer."""
    if said.logprobs is None:
        return None
    tokens = texts.of(said)
    return {
        "tokens": tokens,
        "token_logprobs": [None if math.isnan(logprob) else max(logprob, LEAST) for logprob in said.logprobs],
        "top_logprobs": [
            None
            if math.isnan(logprob)
            else {_text(texts.tokenizer, one.token): max(one.logprob, LEAST) for one in top}
            for _, logprob, top in _rows(said)
        ],
        "text_offset": [offset + length for length in accumulate(map(len, tokens[:-1]), initial=0)][
            : len(tokens)
        ],
    }


def joined(first: dict[str, Any] | None, then: dict[str, Any] | None) -> dict[str, Any] | None:
    """The lists of `legacy` for two texts, one after the other."""
    if first is None or then is None:
        return first or then
    return {name: first[name] + then[name] for name in first}


def _rows(said: Answer | Delta) -> Iterator[tuple[int, float, Sequence[Alternative]]]:
    tops = said.top_logprobs or [()] * len(said.tokens)
    return zip(said.tokens, said.logprobs or (), tops, strict=True)


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.decode_bytes([id], hidden=())
    return {"token": _text(tokenizer, id), "logprob": max(logprob, LEAST), "bytes": list(spelled)}


def _text(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.decode_bytes([id], hidden=()).decode(errors="replace")
