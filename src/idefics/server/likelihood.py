"""How likely tokens were, as OpenAI's clients read it."""

from __future__ import annotations

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


def legacy(tokenizer: Tokenizer, said: Answer | Delta, offset: int) -> dict[str, Any] | None:
    """The same as `/v1/completions` has it; `offset` is where the text begins in the whole answer."""
    if said.logprobs is None:
        return None
    texts = [_text(tokenizer, id) for id in said.tokens]
    lost = int(
        bool(texts) and texts[0].startswith(" ") and not said.text.startswith(" ")
    )  # an answer's first blank
    offsets = [offset, *(offset - lost + length for length in accumulate(map(len, texts)))]
    return {
        "tokens": texts,
        "token_logprobs": [max(logprob, LEAST) for logprob in said.logprobs],
        "top_logprobs": [
            {_text(tokenizer, one.token): max(one.logprob, LEAST) for one in top} for _, _, top in _rows(said)
        ],
        "text_offset": offsets[: len(texts)],
    }


def _rows(said: Answer | Delta) -> Iterator[tuple[int, float, Sequence[Alternative]]]:
    tops = said.top_logprobs or [()] * len(said.tokens)
    return zip(said.tokens, said.logprobs or (), tops, strict=True)


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.decode_bytes([id], hidden=())
    return {"token": _text(tokenizer, id), "logprob": max(logprob, LEAST), "bytes": list(spelled)}


def _text(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.decode_bytes([id], hidden=()).decode(errors="replace")
