"""The state of requests in the engine, the scheduler's plan of one step, and the results that it receives. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from idefics.engine.handle import RequestHandle
from idefics.engine.page_pool import PAGE_SIZE, PageKey, PageKeys
from idefics.engine.request import Request
from idefics.messages import Alternative, FinishReason
from idefics.prompt import PreprocessedImage, PromptAdapter

if TYPE_CHECKING:
    import torch

    from idefics.engine.beam_search import RequestBeamSearch
    from idefics.engine.continuation_scores import CandidateTrie, ContinuationScores


class ImageSpan(NamedTuple):
    """The positions that need one picture of the prompt: its image tokens, or the tokens that cross-attend to it.

    Attributes:
        image_index: the index of the picture in `Prompt.pictures`.
        first_position, last_position: inclusive; the last is infinity if all generated tokens attend to the picture.
    """

    image_index: int
    first_position: int
    last_position: float


@dataclass(eq=False, slots=True)
class SequenceState:
    """One sequence of a request (one beam, or the only answer): token ids, and the pages of their keys and values.

    Attributes:
        ids: prompt and generated ids.
        page_keys: the prefix-cache keys of its full pages.
        num_computed_tokens: how many of the ids have keys and values in the cache.
        num_prefix_cached_pages: how many of its pages have been added to the prefix cache.
        pages: the pages of the sequence, 16 positions each.
    """

    request_state: RequestState
    ids: list[int]
    page_keys: PageKeys
    num_computed_tokens: int = 0
    num_prefix_cached_pages: int = 0
    pages: list[int] = field(default_factory=list)

    def fork(self, id: int) -> SequenceState:
        """A sequence that continues this one with `id` and shares its pages."""
        return replace(self, ids=[*self.ids, id], page_keys=self.page_keys.fork(), pages=list(self.pages))

    @property
    def adapter(self) -> PromptAdapter | None:
        """The adapter that the sequence is computed with."""
        return self.request_state.request.prompt.adapter

    @property
    def pending_page_keys(self) -> list[PageKey]:
        """The keys of the pages that the sequence fills and has not added to the prefix cache yet."""
        return self.page_keys.full_page_keys(self.ids, len(self.ids))[self.num_prefix_cached_pages :]


@dataclass(eq=False)
class RequestState:
    """A request while it waits or runs.

    Attributes:
        max_new_tokens: the maximum number of generated tokens.
        sequences: one until the prompt is computed, then one for each beam.
        image_spans: the positions of its pictures, in order.
        rng: the generator of its samples; kept when the request is preempted.
        beam_search: the beam search, once the prompt is computed.
        continuation_scores: the scores of the continuations, once the prompt is computed.
    """

    request: Request
    handle: RequestHandle
    max_new_tokens: int
    uses_cross_attention: bool

    def __post_init__(self) -> None:
        self.image_spans = list(_find_image_spans(self.request, self.uses_cross_attention))
        self.rng: torch.Generator | None = None
        self.reset_for_recompute()

    @property
    def is_prefilling(self) -> bool:
        """Whether prompt tokens, generated tokens after a preemption, or continuations are still to be computed."""
        if self.continuation_scores is not None:
            return True
        sequence = self.sequences[0]
        return len(self.sequences) == 1 and (
            sequence.num_computed_tokens < len(self.request.prompt)
            or sequence.num_computed_tokens < len(sequence.ids) - 1
        )

    @property
    def max_pages(self) -> int:
        """The most pages that the request can need. The last generated token needs none: it is never computed."""
        num_prompt_tokens, num_sequences = len(self.request.prompt), self.request.num_sequences
        num_shared_pages = num_prompt_tokens // PAGE_SIZE
        num_computed_tokens = num_prompt_tokens + max(self.max_new_tokens - 1, 0)
        return num_shared_pages + num_sequences * (-(-num_computed_tokens // PAGE_SIZE) - num_shared_pages)

    def reset_for_recompute(self) -> None:
        """Replaces the sequences by one that has nothing computed and no pages, and drops beam search and scores.

        A single sequence keeps its generated ids and recomputes them; a beam search starts again, with the same result.
        """
        ids = [*self.request.prompt.ids, *(self.handle.ids if self.request.num_sequences == 1 else ())]
        self.sequences = [SequenceState(self, ids, PageKeys(self.request.prompt, self.uses_cross_attention))]
        self.beam_search: RequestBeamSearch | None = None
        self.continuation_scores: ContinuationScores | None = None

    def append_token_or_finish(self, token: SampledToken) -> None:
        """Appends a sampled token, and finishes the request at a stop or at its length limit."""
        handle, request = self.handle, self.request
        if token.id in request.stop_ids:
            handle.finish("stop")
            return
        is_stopped = request.on_token is not None and request.on_token(token.id)
        handle.append_token(token)
        if is_stopped:
            handle.finish("stop")
        elif len(handle.ids) == self.max_new_tokens:
            handle.finish("length")
        else:
            self.sequences[0].ids.append(token.id)

    def finish_beam_search(self, result: BeamSearchResult) -> None:
        """Writes the best beam's ids into the handle, up to the id at which `on_token` returns true."""
        handle, on_token = self.handle, self.request.on_token
        num_ids, reason = len(result.ids), result.finish_reason
        if on_token is not None:
            for count, id in enumerate(result.ids, start=1):
                if on_token(id):
                    num_ids, reason = count, "stop"
                    break
        handle.ids, handle.logprobs = result.ids[:num_ids], result.logprobs[:num_ids]
        handle.finish(reason)


def _find_image_spans(request: Request, uses_cross_attention: bool) -> Iterator[ImageSpan]:
    """The spans of the prompt's pictures, in order; none for a picture that no token attends to."""
    prompt = request.prompt
    if not uses_cross_attention:
        for index, positions in enumerate(prompt.image_token_positions):
            yield ImageSpan(index, positions[0], positions[-1])
        return
    for index in range(len(prompt.pictures)):
        tokens = [token for token, image_index in enumerate(prompt.image_index) if image_index == index]
        if tokens:
            is_last = prompt.image_index[-1] == index  # then the generated tokens attend to it as well
            yield ImageSpan(index, tokens[0], float("inf") if is_last else tokens[-1])


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
