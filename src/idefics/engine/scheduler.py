"""Decides which tokens the next step computes, and records the results. No torch, no tensors.

Requests wait in a queue and are admitted in order of arrival when there are sequences and pages for them. Long prompts
are computed in chunks. Every decoding sequence gets one token in each step. When pages run out, the latest arrival is
preempted: it releases its pages and returns to the head of the queue. The earliest request is never preempted, so every
request finishes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idefics.config import EngineConfig
from idefics.engine.kv_cache_manager import KVCacheManager
from idefics.engine.page_pool import PAGE_SIZE, PagePool
from idefics.engine.progress import (
    REPORTED_FRAMES,
    report_prompt_progress,
    report_queue_position,
    reports_progress,
)
from idefics.engine.request_state import (
    BeamSearchResult,
    NextBeams,
    PrefillChunk,
    RequestOutput,
    RequestOutputs,
    RequestState,
    SampledToken,
    SchedulerOutput,
)
from idefics.errors import BadSetting, EngineBusy

if TYPE_CHECKING:
    from idefics.engine.encoder_cache import EncoderCache
    from idefics.engine.prefix_files import PrefixFiles

# In a step without decoding sequences the budget of prefill tokens is multiplied by this.
IDLE_PREFILL_FACTOR = 8


@dataclass(eq=False)
class Scheduler:
    """The queue and the running requests. Not thread-safe: callers hold the engine's lock.

    A request with more sequences than `config.batch_rows` runs alone.

    Attributes:
        config: limits of the queue, of running sequences, and of tokens and frames in a step.
        uses_lookahead_pages: whether a sequence gets its next page one token early while enough pages are free, so that
            the next decode step can be launched before its token is known.
        waiting: the queue, in order of arrival.
        running: the admitted requests, in order of arrival.
        prefix_files: files of the beginnings of prompts, read when nothing runs; None: no files.
        num_cached_tokens: how many tokens of admitted requests were in the prefix cache, in all.
    """

    page_pool: PagePool
    config: EngineConfig
    encoder_cache: EncoderCache
    uses_lookahead_pages: bool = False

    def __post_init__(self) -> None:
        self.kv_cache_manager = KVCacheManager(self.page_pool)
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self.prefix_files: PrefixFiles | None = None
        self.num_cached_tokens = 0

    @property
    def is_busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.running or self.waiting)

    @property
    def is_full(self) -> bool:
        """Whether the queue has no place for another request."""
        return len(self.waiting) >= self.config.waiting

    def submit(self, state: RequestState) -> None:
        """Appends a request to the queue.

        Raises:
            EngineBusy: the queue is full.
            BadSetting: the whole cache has too few pages for it.
        """
        request, num_total_pages = state.request, self.page_pool.num_pages - 1
        if state.max_pages > num_total_pages:
            num_sequences = f"{request.num_sequences} sequence{'s' * (request.num_sequences > 1)}"
            raise BadSetting(
                f"a prompt of {len(request.prompt)} tokens with up to {state.max_new_tokens} new ones in "
                f"{num_sequences} takes {state.max_pages * PAGE_SIZE} positions of the KV cache, which has "
                f"{num_total_pages * PAGE_SIZE}: give a smaller max_new_tokens or num_beams, or a larger kv_cache "
                "(--kv-cache)"
            )
        if self.is_full:
            raise EngineBusy(self.config.waiting)
        self.waiting.append(state)
        report_queue_position(state, len(self.waiting) - 1)

    def cancel(self, state: RequestState) -> None:
        """Finishes a request as cancelled. If it is running, its pages are released after the current step."""
        state.handle.finish("cancelled")
        if state in self.waiting:
            self.waiting.remove(state)

    def schedule(self) -> SchedulerOutput:
        """Plans the next step: decoding sequences first, then chunks of running prompts, then new requests."""
        self._remove_finished_requests()
        config = self.config
        output = SchedulerOutput(
            remaining_frames=config.encode_frames,
            remaining_tokens=IDLE_PREFILL_FACTOR * config.step_tokens,
        )
        for state in list(self.running):
            if state in self.running and not state.is_prefilling:
                self._schedule_decode(state, output)
        if output.decode_sequences:
            output.remaining_tokens = config.step_tokens
        for state in self.running:
            if state.is_prefilling:
                self._schedule_prefill(state, output)
        num_waiting = len(self.waiting)
        while self.waiting and output.remaining_tokens > 0 and self._admit_next_request(output):
            report_prompt_progress(self.running[-1], self.encoder_cache)
            self._schedule_prefill(self.running[-1], output)
        if len(self.waiting) < num_waiting:
            for index, state in enumerate(self.waiting):
                report_queue_position(state, index)
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, outputs: RequestOutputs) -> None:
        """Records what a step computed and sampled; finished requests release their pages."""
        failed = {state for state, output in outputs.items() if isinstance(output, Exception)}
        for sequence in scheduler_output.decode_sequences:
            if sequence.request_state not in failed:
                sequence.num_computed_tokens += 1
                if sequence.num_computed_tokens % PAGE_SIZE == 0:
                    self.kv_cache_manager.add_to_prefix_cache(sequence)
        for sequence, _, end, trie in scheduler_output.prefill_chunks:
            if sequence.request_state not in failed and trie is None:
                sequence.num_computed_tokens = end
                self.kv_cache_manager.add_to_prefix_cache(sequence)
        for state in scheduler_output.requests:
            if state not in failed:
                report_prompt_progress(state, self.encoder_cache)
        for state, output in outputs.items():
            if not state.handle.is_done:
                self._apply_output(state, output)
        self._remove_finished_requests()

    def fail_all(self, error: Exception) -> None:
        """Ends all requests, waiting or running, with an error."""
        for state in (*self.running, *self.waiting):
            state.handle.fail(error)
        self.waiting.clear()
        self._remove_finished_requests()

    def image_keys_in_use(self) -> set[str]:
        """Feature keys of the pictures that running requests still need for tokens that are not computed yet.

        The bases of these pictures are among them.
        """
        images = [
            state.request.prompt.pictures[image_span.image_index]
            for state in self.running
            for image_span in state.image_spans
            if image_span.last_position >= min(sequence.num_computed_tokens for sequence in state.sequences)
        ]
        return {image.feature_key for image in images} | {
            image.base.feature_key for image in images if image.base is not None
        }

    def _schedule_decode(self, state: RequestState, output: SchedulerOutput) -> None:
        """Plans the next token of each of a request's sequences; preempts the latest requests if pages run out."""
        for sequence in state.sequences:
            if self.kv_cache_manager.needs_writable_page(sequence):
                while not self.page_pool.num_free_pages:
                    latest = self.running[-1]
                    self._preempt(latest)
                    if latest is state:
                        return
                self.kv_cache_manager.allocate_writable_page(sequence, output.copy_source_by_page)
                output.has_page_changes = True
            if self.uses_lookahead_pages and self.kv_cache_manager.allocate_lookahead_page(
                sequence, min_free_pages=self.config.batch_rows
            ):
                output.has_page_changes = True
        output.requests.append(state)
        output.decode_sequences += state.sequences

    def _schedule_prefill(self, state: RequestState, output: SchedulerOutput) -> None:
        """Plans a request's next prompt chunk or continuation groups, within the step's remaining tokens and frames."""
        if output.remaining_tokens <= 0:
            return
        output.requests.append(state)
        (sequence,) = state.sequences
        start = sequence.num_computed_tokens
        if state.continuation_scores is not None:
            for trie in state.continuation_scores.pending_tries:
                if len(trie) > output.remaining_tokens and output.prefill_chunks:
                    break
                output.add_chunk(PrefillChunk(sequence, start, start + len(trie), trie))
            return
        end = min(len(sequence.ids), start + output.remaining_tokens)
        remaining_frames = REPORTED_FRAMES if reports_progress(state) else output.remaining_frames
        for image_span in state.image_spans:
            if image_span.last_position < start or image_span.first_position >= end:
                continue
            image = state.request.prompt.pictures[image_span.image_index]
            num_missing_frames = self.encoder_cache.count_missing_frames(image)
            num_missing_frames -= sum(
                num_frames
                for other, num_frames in output.encoder_inputs
                if other.feature_key == image.feature_key
            )
            if num_frames := min(num_missing_frames, remaining_frames, output.remaining_frames):
                output.encoder_inputs.append((image, num_frames))
                output.remaining_frames -= num_frames
                remaining_frames -= num_frames
            if num_frames < num_missing_frames:  # the chunk ends before the picture
                end = max(image_span.first_position, start)
        if end > start:
            output.add_chunk(PrefillChunk(sequence, start, end))

    def _admit_next_request(self, output: SchedulerOutput) -> bool:
        """Moves the head of the queue to the running requests if enough sequences and pages are free.

        Returns:
            Whether a request was admitted.
        """
        state = self.waiting[0]
        num_running_sequences = sum(other.request.num_sequences for other in self.running)
        if self.running and num_running_sequences + state.request.num_sequences > self.config.batch_rows:
            return False
        (sequence,) = state.sequences
        if self.prefix_files is not None and not self.running:
            self.prefix_files.load(sequence)
        if not self.kv_cache_manager.allocate_prompt(sequence, self.running, output.copy_source_by_page):
            return False
        self.num_cached_tokens += sequence.num_computed_tokens
        if state.handle.num_cached_tokens is None:  # after a preemption its own cached pages would be counted
            state.handle.num_cached_tokens = sequence.num_computed_tokens
        self.running.append(self.waiting.popleft())
        return True

    def _preempt(self, state: RequestState) -> None:
        """Moves `state`, the latest running request, back to the head of the queue and releases its pages.

        Nothing may be planned for it in this step yet.
        """
        self.running.remove(state)
        self.kv_cache_manager.release(state)
        state.reset_for_recompute()
        self.waiting.appendleft(state)

    def _apply_output(self, state: RequestState, output: RequestOutput) -> None:
        """Updates a request by its output; an exception of the caller's `on_token` fails the request."""
        try:
            match output:
                case Exception():
                    state.handle.fail(output)
                case SampledToken():
                    state.append_token_or_finish(output)
                case NextBeams():
                    self.kv_cache_manager.fork_sequences(state, output.parent_rows, output.ids)
                case BeamSearchResult():
                    state.finish_beam_search(output)
                case _:  # `ContinuationScores`
                    state.handle.continuation_logprobs = output.logprobs
                    state.handle.continuation_top_logprobs = output.top_logprobs
                    state.handle.finish("stop")
        except Exception as error:
            state.handle.fail(error)

    def _remove_finished_requests(self) -> None:
        """Removes done requests from the running ones and releases their pages.

        The pages of failed requests are not added to the prefix cache.
        """
        for state in [state for state in self.running if state.handle.is_done]:
            self.running.remove(state)
            if state.handle.error is None:
                for sequence in state.sequences:
                    self.kv_cache_manager.add_to_prefix_cache(sequence)
            self.kv_cache_manager.release(state)
            state.sequences = []
