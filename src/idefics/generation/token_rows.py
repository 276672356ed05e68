"""The tokens of an answer with their log-probabilities, as rows that can be written as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from idefics.messages import Answer

if TYPE_CHECKING:
    from idefics.processing.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # replaces minus infinity, which JSON lacks


def token_rows(answer: Answer, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """For each token of an answer: id, text, log-probability, and the most likely tokens at its position."""

    def row(id: int, logprob: float) -> dict[str, Any]:
        token_bytes = tokenizer.decode_bytes([id], hidden_ids=())
        return {"id": id, "text": token_bytes.decode(errors="replace"), "logprob": max(logprob, MIN_LOGPROB)}

    top_logprobs = answer.top_logprobs or [()] * len(answer.tokens)
    for id, logprob, top in zip(answer.tokens, answer.logprobs or (), top_logprobs, strict=True):
        yield row(id, logprob) | (
            {"top": [row(one.token, one.logprob) for one in top]} if answer.top_logprobs else {}
        )
