"""One step of the engine: what the scheduler plans, and what comes back to it. No torch, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from idefics.config import EngineConfig
from idefics.engine.request_output import RequestOutput
from idefics.engine.request_state import RequestState, SequenceState
from idefics.prompt import PreprocessedImage

# A step without decoding sequences computes so many times as many tokens of prompts.
IDLE_PREFILL_FACTOR = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """The limits of one step and of the queue.

    Attributes:
        max_sequences: sequences that run at the same time. A request with more runs alone.
        max_prefill_tokens: tokens of prompts computed in a step in which other requests decode.
        max_idle_prefill_tokens: tokens of prompts computed in a step in which none does.
        max_encoder_frames: frames of pictures encoded in a step.
        max_waiting_requests: requests in the queue.
        has_lookahead_page: whether a sequence gets its next page one token early while enough pages are free, so that
            the next decode step can be launched before its token is known.
    """

    max_sequences: int
    max_prefill_tokens: int
    max_idle_prefill_tokens: int
    max_encoder_frames: int
    max_waiting_requests: int
    has_lookahead_page: bool = False

    @classmethod
    def from_config(cls, config: EngineConfig, *, has_lookahead_page: bool) -> SchedulerLimits:
        """The limits of an engine's configuration."""
        return cls(
            max_sequences=config.batch_rows,
            max_prefill_tokens=config.step_tokens,
            max_idle_prefill_tokens=IDLE_PREFILL_FACTOR * config.step_tokens,
            max_encoder_frames=config.encode_frames,
            max_waiting_requests=config.waiting,
            has_lookahead_page=has_lookahead_page,
        )


class PrefillChunk(NamedTuple):
    """Tokens `start` to `end` of a sequence; or, with `continuation_group`, the `end` tokens of that group after it."""

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
        has_page_changes: whether any of them has other pages than in the step before.
        copy_source_by_page: pages to be overwritten with copies of others first: page -> source page.
        encoder_inputs: pictures, and how many more of their frames are to be encoded.
        requests_awaiting_images: the requests that need those pictures.
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
