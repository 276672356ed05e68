"""Who is read in the next step, and how far. Plain bookkeeping: no torch, no tensors.

Requests wait in a queue and are admitted in the order in which they came, when there are rows and pages for them. Long
prompts are read in chunks. Every row that answers is read one token further in each step. When pages run out, the
latest arrival gives its own back and waits again in its old place: the earliest is never sent away, so all are served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from idefics.engine.page_pool import PAGE_SIZE, PageKey, PagePool
from idefics.engine.request_state import RequestState, SequenceState
from idefics.engine.scheduler_output import (
    MissingFrameCounter,
    PrefillChunk,
    SamplerOutput,
    SchedulerLimits,
    SchedulerOutput,
)
from idefics.errors import BadSetting, EngineBusy
from idefics.messages import FinishReason


class Scheduler:
    """The queue, the running jobs and their pages. One caller at a time.

    Attributes:
        num_cached_tokens: how many tokens of prompts had been read already, for others, when their turn came.
    """

    def __init__(
        self, page_pool: PagePool, limits: SchedulerLimits, encoder_cache: MissingFrameCounter
    ) -> None:
        self.page_pool, self.limits, self.encoder_cache = page_pool, limits, encoder_cache
        self.waiting: deque[RequestState] = deque()  # by arrival
        self.running: list[RequestState] = []  # by arrival
        self.num_cached_tokens = 0

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting)

    @property
    def is_full(self) -> bool:
        """Whether the queue takes no more."""
        return len(self.waiting) >= self.limits.max_waiting_requests

    def submit(self, state: RequestState) -> None:
        """A job joins the queue.

        Raises:
            EngineBusy: the queue is full.
            BadSetting: there are not enough pages for it, even if it were alone.
        """
        num_needed_pages, num_total_pages = state.max_pages, self.page_pool.num_pages - 1
        if num_needed_pages > num_total_pages:
            raise BadSetting(
                f"a prompt of {len(state.request.prompt)} tokens with up to {state.max_new_tokens} new ones in "
                f"{state.request.num_sequences} row{'s' * (state.request.num_sequences > 1)} takes {num_needed_pages * PAGE_SIZE} positions of the cache, "
                f"which has {num_total_pages * PAGE_SIZE}: give fewer max_new_tokens or num_beams, or a larger kv_cache (--kv-cache)"
            )
        if self.is_full:
            raise EngineBusy(self.limits.max_waiting_requests)
        self.waiting.append(state)

    def cancel(self, state: RequestState) -> None:
        """Ends a job that is not done; if it is running, its pages are given back after the step."""
        if not state.handle.is_done:
            state.handle.finish("cancelled")
        if state in self.waiting:
            self.waiting.remove(state)

    def schedule(self) -> SchedulerOutput:
        """The next step."""
        self._remove_finished_requests()
        output = SchedulerOutput()
        for state in list(self.running):
            if state in self.running and not state.is_prefilling:
                self._schedule_decode(state, output)
        frame_budget = self.limits.max_encoder_frames
        token_budget = (
            self.limits.max_prefill_tokens if output.decode_sequences else self.limits.max_idle_prefill_tokens
        )
        for state in self.running:
            if state.is_prefilling:
                frame_budget, token_budget = self._schedule_prefill(state, output, frame_budget, token_budget)
        while self.waiting and token_budget > 0 and self._admit_next_request(output):
            frame_budget, token_budget = self._schedule_prefill(
                self.running[-1], output, frame_budget, token_budget
            )
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, sampler_outputs: list[SamplerOutput]
    ) -> None:
        """What was read and chosen is written down; who has ended gives pages back."""
        for sequence in scheduler_output.decode_sequences:
            if sequence.request_state not in scheduler_output.error_by_request:
                sequence.num_computed_tokens += 1
                if sequence.num_computed_tokens % PAGE_SIZE == 0:
                    self._add_to_prefix_cache(sequence)
        for chunk in scheduler_output.prefill_chunks:
            if (
                chunk.continuation_group is None
                and chunk.sequence.request_state not in scheduler_output.error_by_request
            ):
                chunk.sequence.num_computed_tokens = chunk.end
                self._add_to_prefix_cache(chunk.sequence)
        for sampler_output in sampler_outputs:
            if not sampler_output.request_state.handle.is_done:
                self._apply_sampler_output(sampler_output)
        for state, error in scheduler_output.error_by_request.items():
            if not state.handle.is_done:
                state.handle.fail(error)
        self._remove_finished_requests()

    def fail_all(self, error: Exception) -> None:
        """Ends every job."""
        for state in (*self.running, *self.waiting):
            if not state.handle.is_done:
                state.handle.fail(error)
        self.waiting.clear()
        self._remove_finished_requests()

    def image_keys_in_use(self) -> set[str]:
        """Keys of the pictures that running jobs have still to read or see."""
        return {
            state.request.prompt.pictures[image_span.image_index].content_hash
            for state in self.running
            for image_span in state.image_spans
            if image_span.last_position >= min(sequence.num_computed_tokens for sequence in state.sequences)
        }

    def _schedule_decode(self, state: RequestState, output: SchedulerOutput) -> None:
        """Plans one more token of each of a job's rows, if there are pages for it."""
        for sequence in state.sequences:
            page_index = sequence.num_computed_tokens // PAGE_SIZE
            is_new = page_index == len(sequence.pages)
            if is_new or self.page_pool.ref_counts[sequence.pages[page_index]] > 1:
                while not self.page_pool.num_free_pages:
                    latest = self.running[-1]
                    self._preempt(latest)
                    if latest is state:
                        return
                page = self.page_pool.allocate()
                output.has_page_changes = True
                if is_new:
                    sequence.pages.append(page)
                else:  # shared with another beam: from here on they differ
                    output.copy_source_by_page[page] = sequence.pages[page_index]
                    self.page_pool.release([sequence.pages[page_index]])
                    sequence.pages[page_index] = page
            is_full = (sequence.num_computed_tokens + 1) // PAGE_SIZE == len(sequence.pages)
            if (
                self.limits.has_lookahead_page
                and is_full
                and self.page_pool.num_free_pages > self.limits.max_sequences
            ):
                sequence.pages.append(self.page_pool.allocate())
                output.has_page_changes = True
        output.decode_sequences += state.sequences

    def _schedule_prefill(
        self, state: RequestState, output: SchedulerOutput, frame_budget: int, token_budget: int
    ) -> tuple[int, int]:
        """Plans the next chunk of a prompt, or of endings: -> how many frames and tokens are left."""
        if token_budget <= 0:
            return frame_budget, token_budget
        if state.pending_tokens_by_group:
            for group, num_tokens in state.pending_tokens_by_group.items():
                if num_tokens > token_budget and output.prefill_chunks:
                    break
                output.prefill_chunks.append(PrefillChunk(state.sequences[0], 0, num_tokens, group))
                token_budget -= num_tokens
            return frame_budget, token_budget
        (sequence,) = state.sequences
        end = min(len(sequence.ids), sequence.num_computed_tokens + token_budget)
        for image_span in state.image_spans:
            if image_span.last_position < sequence.num_computed_tokens or image_span.first_position >= end:
                continue
            tiles = state.request.prompt.pictures[image_span.image_index]
            num_missing_frames = self.encoder_cache.count_missing_frames(tiles)
            if num_missing_frames:
                output.requests_awaiting_images.append(state)
            num_missing_frames -= sum(
                num_tokens
                for other, num_tokens in output.encoder_inputs
                if other.content_hash == tiles.content_hash
            )
            if num_frames := min(num_missing_frames, frame_budget):
                output.encoder_inputs.append((tiles, num_frames))
                frame_budget -= num_frames
            if num_frames < num_missing_frames:
                end = max(image_span.first_position, sequence.num_computed_tokens)
        if end > sequence.num_computed_tokens:
            output.prefill_chunks.append(PrefillChunk(sequence, sequence.num_computed_tokens, end))
        return frame_budget, token_budget - (end - sequence.num_computed_tokens)

    def _admit_next_request(self, output: SchedulerOutput) -> bool:
        """Lets the first of the queue run, if there is room: whether it does."""
        state = self.waiting[0]
        num_running_sequences = sum(other.request.num_sequences for other in self.running)
        if self.running and num_running_sequences + state.request.num_sequences > self.limits.max_sequences:
            return False
        (sequence,) = state.sequences
        num_reusable_tokens = len(sequence.ids) - 1  # it is read in any case, for what follows it
        keys = sequence.page_keys.full_page_keys(sequence.ids, num_reusable_tokens)
        cached_pages = self.page_pool.match_prefix(keys)
        if len(cached_pages) < len(keys) and keys[len(cached_pages)] in self._keys_being_computed():
            return False  # another is reading the same beginning: in a step or so it can be shared
        next_page = sequence.page_keys.page_content(sequence.ids, len(cached_pages), num_reusable_tokens)
        partial_page, num_partial_tokens = self.page_pool.match_partial_page(
            next_page.parent_key, next_page.tokens
        )
        candidate_pages, num_cached_tokens = (
            [*cached_pages, partial_page],
            sequence.page_keys.round_down_to_image_boundary(
                len(cached_pages) * PAGE_SIZE + num_partial_tokens
            ),
        )
        num_reserved_pages = sum(
            len(other.sequences) for other in self.running
        )  # a page each, or they would soon be sent away
        while True:
            num_full_pages = num_cached_tokens // PAGE_SIZE
            shared_pages, copied_pages = (
                candidate_pages[:num_full_pages],
                candidate_pages[num_full_pages:][: min(num_cached_tokens % PAGE_SIZE, 1)],
            )  # the last is copied
            num_new_pages = -(-len(sequence.ids) // PAGE_SIZE) - num_full_pages
            num_available_pages = self.page_pool.num_free_pages - sum(
                not self.page_pool.ref_counts[page] for page in (*shared_pages, *copied_pages)
            )
            if num_new_pages + num_reserved_pages <= num_available_pages:
                break
            if self.running or not copied_pages:
                return False
            num_cached_tokens = sequence.page_keys.round_down_to_image_boundary(
                num_full_pages * PAGE_SIZE
            )  # the copied page is in the way
        self.page_pool.add_references(shared_pages + copied_pages)
        sequence.pages = shared_pages + [self.page_pool.allocate() for _ in range(num_new_pages)]
        if copied_pages:
            output.copy_source_by_page[sequence.pages[len(shared_pages)]] = copied_pages[0]
        self.page_pool.release(copied_pages)
        sequence.num_computed_tokens, sequence.num_prefix_cached_pages = num_cached_tokens, len(shared_pages)
        self.num_cached_tokens += num_cached_tokens
        if state.handle.num_cached_tokens is None:  # one that was sent away finds what it has read itself
            state.handle.num_cached_tokens = num_cached_tokens
        self.running.append(self.waiting.popleft())
        return True

    def _keys_being_computed(self) -> set[PageKey]:
        """What will be published as soon as it is read."""
        return {
            key
            for state in self.running
            if state.is_prefilling
            for key in state.sequences[0].pending_page_keys()
        }

    def _preempt(self, state: RequestState) -> None:
        """Sends a job, the latest, back to its place in the queue: nothing of it is planned yet."""
        self.running.remove(state)
        self._release_pages(state)
        state.reset_for_recompute()
        self.waiting.appendleft(state)

    def _apply_sampler_output(self, sampler_output: SamplerOutput) -> None:
        state = sampler_output.request_state
        if sampler_output.parent_rows is not None:
            self._fork_sequences(state, sampler_output.parent_rows, sampler_output.next_ids)
            return
        try:
            if sampler_output.finish_reason is not None:
                self._finish_request(state, sampler_output.finish_reason)
            else:
                self._append_token(state, sampler_output)
        except Exception as error:  # of the caller's `watch`
            state.handle.fail(error)

    def _append_token(self, state: RequestState, sampler_output: SamplerOutput) -> None:
        handle, request, id = state.handle, state.request, sampler_output.next_ids[0]
        if id in request.stop_ids:
            handle.finish("stop")
            return
        is_stopped = request.on_token is not None and request.on_token(id)
        handle.append_token(id, sampler_output.logprob, sampler_output.top_logprobs)
        if is_stopped:
            handle.finish("stop")
        elif len(handle.ids) == state.max_new_tokens:
            handle.finish("length")
        else:
            state.sequences[0].ids.append(id)

    def _finish_request(self, state: RequestState, reason: FinishReason) -> None:
        """An answer that came as a whole."""
        handle, on_token = state.handle, state.request.on_token
        for count, id in enumerate(handle.ids if on_token is not None else (), start=1):
            if on_token is not None and on_token(id):
                handle.ids, handle.logprobs = handle.ids[:count], handle.logprobs[:count]
                reason = "stop"
                break
        handle.finish(reason)

    def _fork_sequences(self, state: RequestState, parent_rows: Sequence[int], ids: Sequence[int]) -> None:
        """Each new row goes on with another id after one of the old ones, and shares its pages."""
        old_sequences = state.sequences
        state.sequences = [
            old_sequences[parent].fork(id) for parent, id in zip(parent_rows, ids, strict=True)
        ]
        for sequence in state.sequences:
            self.page_pool.add_references(sequence.pages)
        for sequence in old_sequences:
            self.page_pool.release(sequence.pages)

    def _add_to_prefix_cache(self, sequence: SequenceState) -> None:
        """What has been read can be found: whole pages, and what there is of the last one where others may go on."""
        num_full_pages = sequence.num_computed_tokens // PAGE_SIZE
        page_indices = range(
            sequence.num_prefix_cached_pages, num_full_pages + (sequence.num_computed_tokens % PAGE_SIZE > 0)
        )
        for page_index in page_indices:
            self.page_pool.add_to_prefix_cache(
                sequence.pages[page_index],
                sequence.page_keys.page_content(sequence.ids, page_index, sequence.num_computed_tokens),
            )
        sequence.num_prefix_cached_pages = num_full_pages

    def _remove_finished_requests(self) -> None:
        """Who is done gives pages back."""
        for state in [state for state in self.running if state.handle.is_done]:
            self.running.remove(state)
            if state.handle.error is None:
                for sequence in state.sequences:
                    self._add_to_prefix_cache(sequence)
            self._release_pages(state)
            state.sequences = []

    def _release_pages(self, state: RequestState) -> None:
        for sequence in state.sequences:
            self.page_pool.release(sequence.pages)
            sequence.pages = []
