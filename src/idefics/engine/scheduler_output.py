"""The scheduler's plan of one step, its limits, and the results that it receives. No torch, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from idefics.config import EngineConfig
from idefics.engine.request_output import RequestOutput
from idefics.engine.request_state import RequestState, SequenceState
from idefics.prompt import PreprocessedImage

# In a step without decoding sequences the budget of prefill tokens is multiplied by this.
IDLE_PREFILL_FACTOR = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The limits of one step and of the queue.

    Attributes:
        max_sequences: sequences that run at the same time. A request with more runs alone.
        max_prefill_tokens: tokens of prompts computed in a step in which other requests decode.
        max_idle_prefill_tokens: tokens of prompts computed in a step in which no request decodes.
        max_encoder_frames: frames of pictures encoded in a step.
        max_waiting_requests: requests in the queue.
        uses_lookahead_pages: whether a sequence gets its next page one token early while enough pages are free, so that
            the next decode step can be launched before its token is known.
    """

    max_sequences: int
    max_prefill_tokens: int
    max_idle_prefill_tokens: int
    max_encoder_frames: int
    max_waiting_requests: int
    uses_lookahead_pages: bool = False

    @classmethod
    def from_config(cls, config: EngineConfig, *, uses_lookahead_pages: bool) -> SchedulerLimits:
        """The limits of an engine's configuration."""
        return cls(
            max_sequences=config.batch_rows,
            max_prefill_tokens=config.step_tokens,
            max_idle_prefill_tokens=IDLE_PREFILL_FACTOR * config.step_tokens,
            max_encoder_frames=config.encode_frames,
            max_waiting_requests=config.waiting,
            uses_lookahead_pages=uses_lookahead_pages,
        )


class PrefillChunk(NamedTuple):
    """Tokens to compute in one step: a part of a sequence, or a group of continuations after it.

    Attributes:
        start, end: positions in the sequence, `end` exclusive; for continuations 0 and the group's number of tokens.
        continuation_group: the group of continuations; None for a part of the sequence.
    """

    sequence: SequenceState
    start: int
    end: int
    continuation_group: int | None = None

    @property
    def is_final_chunk(self) -> bool:
        """Whether it ends the sequence, so that the next token is sampled after it."""
        return self.continuation_group is None and self.end == len(self.sequence.ids)


@dataclass(slots=True)
class SchedulerOutput:
    """The plan of one step.

    Attributes:
        decode_sequences: sequences whose last token is computed.
        has_page_changes: whether the page table of any of them has changed since the step before.
        copy_source_by_page: pages to fill with a copy of another page before anything is computed: page -> source.
        encoder_inputs: pictures, and how many more of their frames are to be encoded.
        requests_awaiting_images: the requests whose next tokens need pictures that are not fully encoded.
        prefill_chunks: chunks of prompts and groups of continuations to be computed.
    """

    decode_sequences: list[SequenceState] = field(default_factory=list)
    has_page_changes: bool = False
    copy_source_by_page: dict[int, int] = field(default_factory=dict)
    encoder_inputs: list[tuple[PreprocessedImage, int]] = field(default_factory=list)
    requests_awaiting_images: list[RequestState] = field(default_factory=list)
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)


@dataclass(slots=True)
class StepResult:
    """The results of one step.

    Attributes:
        output_by_request: the new token, beams or scores of each request that has some.
        error_by_request: the requests that failed.
        has_replaced_tokens: whether a constraint replaced a sampled token by another one.
    """

    output_by_request: dict[RequestState, RequestOutput] = field(default_factory=dict)
    error_by_request: dict[RequestState, Exception] = field(default_factory=dict)
    has_replaced_tokens: bool = False
