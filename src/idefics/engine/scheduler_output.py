"""One step of the engine, as the scheduler plans it and as it comes back. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from idefics.engine.request_state import RequestState, SequenceState
from idefics.messages import Alternative, FinishReason
from idefics.prompt import PreprocessedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What one step and the queue may hold.

    Attributes:
        max_sequences: so many rows are answered side by side. A wider request runs alone.
        max_prefill_tokens: so many tokens of prompts are read in a step while others are being answered.
        max_idle_prefill_tokens: so many, if nobody is being answered.
        max_encoder_frames: so many frames of pictures are encoded in a step.
        max_waiting_requests: so many requests wait.
        has_lookahead_page: whether rows get pages a token before they need them, as long as there are enough.
    """

    max_sequences: int
    max_prefill_tokens: int
    max_idle_prefill_tokens: int
    max_encoder_frames: int
    max_waiting_requests: int
    has_lookahead_page: bool = False


class MissingFrameCounter(Protocol):
    """What the scheduler needs of the encoder cache."""

    def count_missing_frames(self, tiles: PreprocessedImage) -> int:
        """How many frames of a picture are still to be encoded."""
        ...


class PrefillChunk(NamedTuple):
    """Tokens `start` to `end` of a row, which are read in one step; or the `continuation_group`-th of a job's endings after it."""

    sequence: SequenceState
    start: int
    end: int
    continuation_group: int | None = None

    @property
    def is_final_chunk(self) -> bool:
        """Whether a token is chosen after it."""
        return self.continuation_group is None and self.end == len(self.sequence.ids)


@dataclass(slots=True)
class SchedulerOutput:
    """One step.

    Attributes:
        decode_sequences: rows that are read one token further.
        has_page_changes: whether some of them have other pages than in the step before.
        copy_source_by_page: for pages that begin as copies of others, which: page -> other.
        encoder_inputs: pictures, and how many of their frames are encoded.
        requests_awaiting_images: jobs that need those pictures.
        prefill_chunks: what is read of prompts and endings.
        error_by_request: jobs that failed in this step.
    """

    decode_sequences: list[SequenceState] = field(default_factory=list)
    has_page_changes: bool = False
    copy_source_by_page: dict[int, int] = field(default_factory=dict)
    encoder_inputs: list[tuple[PreprocessedImage, int]] = field(default_factory=list)
    requests_awaiting_images: list[RequestState] = field(default_factory=list)
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)
    error_by_request: dict[RequestState, Exception] = field(default_factory=dict)


class SamplerOutput(NamedTuple):
    """What follows for a job.

    Attributes:
        next_ids: the next id of each row that goes on.
        parent_rows: the row that each of them continues; None: its own.
        logprob: of the id, where one row is asked for it.
        top_logprobs: what was most likely in its place.
        finish_reason: why the job has ended with `answer` and `logprobs`, if it has.
    """

    request_state: RequestState
    next_ids: Sequence[int] = ()
    parent_rows: Sequence[int] | None = None
    logprob: float | None = None
    top_logprobs: tuple[Alternative, ...] = ()
    finish_reason: FinishReason | None = None
