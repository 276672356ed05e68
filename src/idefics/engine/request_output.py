"""The result of one engine step for one request, by kind of request. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from idefics.messages import Alternative, FinishReason


class SampledToken(NamedTuple):
    """The next token of a request without beams.

    Attributes:
        id: the token, which may be a stop id.
        logprob: its natural-log probability, if the request has `logprobs`.
        top_logprobs: the most likely tokens at its position, as many as the request has `top_logprobs`.
    """

    id: int
    logprob: float | None = None
    top_logprobs: tuple[Alternative, ...] = ()


class NextBeams(NamedTuple):
    """The running beams of a request after a step of its beam search.

    Attributes:
        ids: the last id of each beam.
        parent_rows: for each beam the index of the sequence that it continues.
    """

    ids: Sequence[int]
    parent_rows: Sequence[int]


class BeamSearchResult(NamedTuple):
    """The best beam of a finished beam search.

    Attributes:
        ids: the generated ids, without stop id.
        logprobs: natural-log probability of each, if the request has `logprobs`; else empty.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


class ScoringResult(NamedTuple):
    """The scores of all continuations.

    Attributes:
        logprobs: for each continuation the natural-log probability of each token.
        top_logprobs: for each continuation the most likely tokens at the position of each token.
    """

    logprobs: list[list[float]]
    top_logprobs: list[list[tuple[Alternative, ...]]]


RequestOutput = SampledToken | NextBeams | BeamSearchResult | ScoringResult
