"""A request on its way through the engine: its rows, and what of them has been read. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from idefics.engine.handle import RequestHandle
from idefics.engine.page_pool import PAGE_SIZE, PageKey, PageKeys
from idefics.engine.request import Request


class ImageSpan(NamedTuple):
    """The tokens `first_position` to `last_position` of a row are, or see, a picture of its prompt."""

    image_index: int
    first_position: int
    last_position: float


class SequenceState:
    """A row: ids, and the pages that hold what has been read of them.

    Attributes:
        ids: prompt and answer.
        num_computed_tokens: how many of them have been read.
        pages: one for each 16 positions, as far as there is need.
        page_keys: what its full pages hold.
        num_prefix_cached_pages: how many of its pages are in the index.
    """

    __slots__ = (
        "ids",
        "num_computed_tokens",
        "num_prefix_cached_pages",
        "page_keys",
        "pages",
        "request_state",
    )

    def __init__(self, request_state: RequestState, ids: list[int], page_keys: PageKeys) -> None:
        self.request_state, self.ids, self.page_keys = request_state, ids, page_keys
        self.num_computed_tokens = self.num_prefix_cached_pages = 0
        self.pages: list[int] = []

    def fork(self, id: int) -> SequenceState:
        """A row that goes on with `id` after what this one has read."""
        other = SequenceState(self.request_state, [*self.ids, id], self.page_keys.fork())
        other.num_computed_tokens, other.num_prefix_cached_pages, other.pages = (
            self.num_computed_tokens,
            self.num_prefix_cached_pages,
            list(self.pages),
        )
        return other

    def pending_page_keys(self) -> Iterator[PageKey]:
        """Keys of the pages that are yet to be read."""
        yield from self.page_keys.full_page_keys(self.ids, len(self.ids))[self.num_prefix_cached_pages :]


class RequestState:
    """A request and how far it is.

    Attributes:
        max_new_tokens: how many tokens the answer may have.
        sequences: its rows: one until its prompt has been read, then as many as there are beams.
        image_spans: where its pictures are needed, in their order.
        pending_tokens_by_group: for endings that are yet to be read, in how many tokens each group of them.
        rng: what its tokens are drawn with, which is kept when it has to wait again.
        beam_or_scoring_state: what is known of its beams or endings.
    """

    def __init__(
        self, request: Request, handle: RequestHandle, max_new_tokens: int, uses_cross_attention: bool
    ) -> None:
        self.request, self.handle, self.max_new_tokens = request, handle, max_new_tokens
        self.uses_cross_attention = uses_cross_attention
        self.image_spans = list(_find_image_spans(request, uses_cross_attention))
        self.sequences: list[SequenceState] = []
        self.rng: Any = None
        self.reset_for_recompute()

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt or its endings are being read."""
        if self.pending_tokens_by_group:
            return True
        sequence = self.sequences[0]
        return len(self.sequences) == 1 and (
            sequence.num_computed_tokens < len(self.request.prompt)
            or sequence.num_computed_tokens < len(sequence.ids) - 1
        )

    @property
    def max_pages(self) -> int:
        """How many pages it may come to own. The last token of an answer is not read."""
        num_prompt_tokens, num_sequences = len(self.request.prompt), self.request.num_sequences
        num_shared_pages = num_prompt_tokens // PAGE_SIZE
        return num_shared_pages + num_sequences * (
            -(-(num_prompt_tokens + max(self.max_new_tokens - 1, 0)) // PAGE_SIZE) - num_shared_pages
        )

    def reset_for_recompute(self) -> None:
        """Nothing of it is in the cache.

        One row keeps its answer so far and reads it again. Beams are searched anew: they find the same.
        """
        ids = [*self.request.prompt.ids, *(self.handle.ids if self.request.num_sequences == 1 else ())]
        self.sequences = [SequenceState(self, ids, PageKeys(self.request.prompt, self.uses_cross_attention))]
        self.pending_tokens_by_group: dict[int, int] = {}
        self.beam_or_scoring_state: Any = None


def _find_image_spans(request: Request, uses_cross_attention: bool) -> Iterator[ImageSpan]:
    prompt = request.prompt
    if not uses_cross_attention:
        for index, positions in enumerate(prompt.image_token_positions):
            yield ImageSpan(index, positions[0], positions[-1])
        return
    for index in range(len(prompt.pictures)):
        tokens = [token for token, image_index in enumerate(prompt.image_index) if image_index == index]
        if tokens:
            is_last = prompt.image_index[-1] == index  # and so all of the answer sees it
            yield ImageSpan(index, tokens[0], float("inf") if is_last else tokens[-1])
