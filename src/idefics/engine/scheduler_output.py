"""The scheduler's plan of one step, and the results that it receives. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from idefics.engine.request_state import RequestState, SequenceState
from idefics.messages import Alternative, FinishReason
from idefics.prompt import PreprocessedImage

if TYPE_CHECKING:
    from idefics.engine.continuation_scores import CandidateTrie, ContinuationScores


class PrefillChunk(NamedTuple):
    """Tokens to compute in one step: a part of a sequence, or a group of continuations after it.

    Attributes:
        start, end: positions in the sequence, `end` exclusive; for continuations the number of tokens before them, and
            that number plus the number of their tokens.
        trie: the group of continuations; None for a part of the sequence.
    """

    sequence: SequenceState
    start: int
    end: int
    trie: CandidateTrie | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens the chunk has: `end` - `start`."""
        return self.end - self.start

    @property
    def is_final_chunk(self) -> bool:
        """Whether the chunk reaches the end of its sequence, so that the next token is sampled after it."""
        return self.trie is None and self.end == len(self.sequence.ids)


@dataclass(slots=True)
class SchedulerOutput:
    """The plan of one step.

    Attributes:
        requests: the requests for which the step computes tokens or encodes pictures.
        decode_sequences: sequences whose last id is computed, to get the logits of the next.
        has_page_changes: whether the page table of any of them has changed since the step before.
        copy_source_by_page: pages to fill with a copy of another page before anything is computed: page -> source.
        encoder_inputs: pictures, and how many more of their frames are to be encoded.
        prefill_chunks: chunks of prompts and groups of continuations to be computed.
        remaining_frames, remaining_tokens: how many more may be encoded, and prefilled, in this step.
    """

    requests: list[RequestState] = field(default_factory=list)
    decode_sequences: list[SequenceState] = field(default_factory=list)
    has_page_changes: bool = False
    copy_source_by_page: dict[int, int] = field(default_factory=dict)
    encoder_inputs: list[tuple[PreprocessedImage, int]] = field(default_factory=list)
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)
    remaining_frames: int = 0
    remaining_tokens: int = 0

    def add_chunk(self, chunk: PrefillChunk) -> None:
        """Adds a chunk to be computed, and takes its tokens off the remaining ones."""
        self.prefill_chunks.append(chunk)
        self.remaining_tokens -= chunk.num_tokens

    def select_request(self, state: RequestState) -> SchedulerOutput:
        """The part of the plan for one request, without the copies of pages, which must not be made twice."""
        feature_keys = {image.feature_key for image in state.request.prompt.pictures}
        return SchedulerOutput(
            requests=[state],
            decode_sequences=[s for s in self.decode_sequences if s.request_state is state],
            has_page_changes=True,
            encoder_inputs=[one for one in self.encoder_inputs if one[0].feature_key in feature_keys],
            prefill_chunks=[chunk for chunk in self.prefill_chunks if chunk.sequence.request_state is state],
        )


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


# What a step computed for one request, or the error with which it failed.
RequestOutput: TypeAlias = "SampledToken | NextBeams | BeamSearchResult | ContinuationScores | Exception"
RequestOutputs: TypeAlias = "dict[RequestState, RequestOutput]"
