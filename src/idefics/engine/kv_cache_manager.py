"""The pages of running sequences: allocation, reuse of cached prefixes, sharing between beams. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics.engine.page_pool import PAGE_SIZE, PagePool
from idefics.engine.request_state import RequestState, SequenceState


@dataclass(frozen=True)
class KVCacheManager:
    """Assigns the pages of a `PagePool` to sequences."""

    page_pool: PagePool

    def allocate_prompt(
        self, sequence: SequenceState, running: Sequence[RequestState], copy_source_by_page: dict[int, int]
    ) -> bool:
        """Gives a sequence all pages of its prompt, and sets how many of its tokens are computed already.

        Full pages of the longest cached prefix are shared; a page that matches partly is copied, and added to
        `copy_source_by_page`. One page for each running sequence stays free, or some would soon be preempted. If no
        request runs and pages are short, no page is copied, and its tokens are recomputed.

        Returns:
            Whether the sequence got its pages: not if there are too few, or if a running request is computing the next
            page of the same prefix, which can be shared once it is computed.
        """
        page_keys, num_reusable_tokens = sequence.page_keys, len(sequence.ids) - 1  # the last: for its logits
        keys = page_keys.full_page_keys(sequence.ids, num_reusable_tokens)
        pages = self.page_pool.match_prefix(keys)
        if len(pages) < len(keys) and any(
            keys[len(pages)] in state.sequences[0].pending_page_keys
            for state in running
            if state.is_prefilling
        ):
            return False
        next_page = page_keys.page_content(sequence.ids, len(pages), num_reusable_tokens)
        partial_page, num_partial_tokens = self.page_pool.match_partial_page(
            next_page.parent_key, next_page.tokens
        )
        pages.append(partial_page)
        num_reserved_pages = sum(len(state.sequences) for state in running)
        num_tokens = page_keys.round_down_to_image_boundary((len(pages) - 1) * PAGE_SIZE + num_partial_tokens)
        while True:
            num_full_pages = num_tokens // PAGE_SIZE
            shared_pages = pages[:num_full_pages]
            copied_pages = pages[num_full_pages:][: min(num_tokens % PAGE_SIZE, 1)]
            num_new_pages = -(-len(sequence.ids) // PAGE_SIZE) - num_full_pages
            num_available_pages = self.page_pool.num_free_pages - sum(
                not self.page_pool.ref_counts[page] for page in (*shared_pages, *copied_pages)
            )
            if num_new_pages + num_reserved_pages <= num_available_pages:
                break
            if running or not copied_pages:
                return False
            num_tokens = page_keys.round_down_to_image_boundary(num_full_pages * PAGE_SIZE)
        self.page_pool.add_references(shared_pages + copied_pages)
        sequence.pages = shared_pages + [self.page_pool.allocate() for _ in range(num_new_pages)]
        self.page_pool.release(copied_pages)
        sequence.num_computed_tokens, sequence.num_prefix_cached_pages = num_tokens, num_full_pages
        copy_source_by_page |= zip(sequence.pages[num_full_pages:], copied_pages, strict=False)
        return True

    def needs_writable_page(self, sequence: SequenceState) -> bool:
        """Whether the next token needs a new page: the sequence's pages are full, or another beam shares the last."""
        page_index = sequence.num_computed_tokens // PAGE_SIZE
        return page_index == len(sequence.pages) or self.page_pool.ref_counts[sequence.pages[page_index]] > 1

    def allocate_writable_page(self, sequence: SequenceState, copy_source_by_page: dict[int, int]) -> None:
        """Gives a sequence a page of its own for its next token: a new one, or a copy of a shared one.

        A copy is added to `copy_source_by_page`: new page -> page to copy.
        """
        page, page_index = self.page_pool.allocate(), sequence.num_computed_tokens // PAGE_SIZE
        if page_index == len(sequence.pages):
            sequence.pages.append(page)
        else:
            copy_source_by_page[page] = sequence.pages[page_index]
            self.page_pool.release([sequence.pages[page_index]])
            sequence.pages[page_index] = page

    def allocate_lookahead_page(self, sequence: SequenceState, min_free_pages: int) -> bool:
        """Gives a sequence a page ahead of time, if the next token fills its last one and pages are left.

        Args:
            min_free_pages: nothing is allocated unless more pages than this are free.

        Returns:
            Whether a page was allocated.
        """
        will_be_full = (sequence.num_computed_tokens + 1) // PAGE_SIZE == len(sequence.pages)
        if not will_be_full or self.page_pool.num_free_pages <= min_free_pages:
            return False
        sequence.pages.append(self.page_pool.allocate())
        return True

    def fork_sequences(self, state: RequestState, parent_rows: Sequence[int], ids: Sequence[int]) -> None:
        """Replaces a request's sequences by continuations of them, which share their pages.

        Args:
            parent_rows: for each new sequence the index of the one that it continues.
            ids: the last id of each new sequence.
        """
        old_sequences = state.sequences
        state.sequences = [
            old_sequences[parent].fork(id) for parent, id in zip(parent_rows, ids, strict=True)
        ]
        for sequence in state.sequences:
            self.page_pool.add_references(sequence.pages)
        for sequence in old_sequences:
            self.page_pool.release(sequence.pages)

    def add_to_prefix_cache(self, sequence: SequenceState) -> None:
        """Adds the computed pages of a sequence to the prefix cache, the last one even if it is not full."""
        num_computed_tokens = sequence.num_computed_tokens
        num_full_pages = num_computed_tokens // PAGE_SIZE
        num_pages = num_full_pages + (num_computed_tokens % PAGE_SIZE > 0)
        for page_index in range(sequence.num_prefix_cached_pages, num_pages):
            content = sequence.page_keys.page_content(sequence.ids, page_index, num_computed_tokens)
            self.page_pool.add_to_prefix_cache(sequence.pages[page_index], content)
        sequence.num_prefix_cached_pages = num_full_pages

    def release(self, state: RequestState) -> None:
        """Releases all pages of a request's sequences."""
        for sequence in state.sequences:
            self.page_pool.release(sequence.pages)
            sequence.pages = []
