"""How likely tokens were, as OpenAI's clients read it."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from idefics.messages import Alternative, Answer, Delta
from idefics.processing.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # stands for what cannot be, since JSON knows no infinity


def chat_logprobs(tokenizer: Tokenizer, answer: Answer | Delta) -> list[dict[str, Any]] | None:
    """Each token with its log-probability and those of the likeliest in its place; None where it was not asked for."""
    if answer.logprobs is None:
        return None
    return [
        {
            **_token_logprob(tokenizer, id, logprob),
            "top_logprobs": [
                _token_logprob(tokenizer, alternative.token, alternative.logprob) for alternative in top
            ],
        }
        for id, logprob, top in _iterate_logprobs(answer)
    ]


class TokenTextDecoder:
    """The text of each token of an answer, piece by piece; joined they are the answer's text.

    A character that several tokens spell is the text of the last of them; a space that a form leaves out is of none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._utf8_decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_started = False

    def decode_tokens(self, answer: Answer | Delta) -> list[str]:
        """The texts of a whole answer's tokens, or of those that a delta adds."""
        token_bytes = (self.tokenizer.decode_bytes([id], hidden_ids=()) for id in answer.tokens)
        texts = [self._utf8_decoder.decode(data) for data in token_bytes]
        if texts and isinstance(answer, Answer):
            texts[-1] += self._utf8_decoder.decode(b"", final=True)
        if texts and not self._has_started and not answer.text.startswith(" "):
            texts[0] = texts[0].removeprefix(" ")
        self._has_started = True
        return texts


def completion_logprobs(
    decoder: TokenTextDecoder, answer: Answer | Delta, offset: int
) -> dict[str, Any] | None:
    """The same as `/v1/completions` has it; `offset` is where the text begins in the whole answer."""
    if answer.logprobs is None:
        return None
    tokens = decoder.decode_tokens(answer)
    return {
        "tokens": tokens,
        "token_logprobs": [
            None if math.isnan(logprob) else max(logprob, MIN_LOGPROB) for logprob in answer.logprobs
        ],
        "top_logprobs": [
            None
            if math.isnan(logprob)
            else {
                _token_text(decoder.tokenizer, alternative.token): max(alternative.logprob, MIN_LOGPROB)
                for alternative in top
            }
            for _, logprob, top in _iterate_logprobs(answer)
        ],
        "text_offset": [offset + length for length in accumulate(map(len, tokens[:-1]), initial=0)][
            : len(tokens)
        ],
    }


def concatenate_logprobs(
    first: dict[str, Any] | None, second: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The lists of `legacy` for two texts, one after the other."""
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}


def _iterate_logprobs(answer: Answer | Delta) -> Iterator[tuple[int, float, Sequence[Alternative]]]:
    top_logprobs = answer.top_logprobs or [()] * len(answer.tokens)
    return zip(answer.tokens, answer.logprobs or (), top_logprobs, strict=True)


def _token_logprob(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    token_bytes = tokenizer.decode_bytes([id], hidden_ids=())
    return {
        "token": _token_text(tokenizer, id),
        "logprob": max(logprob, MIN_LOGPROB),
        "bytes": list(token_bytes),
    }


def _token_text(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.decode_bytes([id], hidden_ids=()).decode(errors="replace")
