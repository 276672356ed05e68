"""Who owns which page of the cache, and which pages can be used again. No torch, no tensors.

A page is owned (by one or several rows), or free, or kept: nobody owns it, but what it holds is in the index and may be
asked for again, until its room is wanted. Page 0 is never given out.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from idefics.prompt import Prompt

PAGE_SIZE = 16  # positions of one page
PageKey = bytes
PageToken = tuple[int, str]  # all that matters of one position: its id, and what it shows or sees of pictures


class PageContent(NamedTuple):
    """What a page holds.

    Attributes:
        key: of all up to its last mark, the pages before it included.
        parent_key: the key of the page before it.
        tokens: of its positions; fewer than a page has where no more was read.
    """

    key: PageKey
    parent_key: PageKey
    tokens: tuple[PageToken, ...]


class PagePool:
    """A pool of pages 1 to `num_pages` - 1.

    Attributes:
        ref_counts: for each page how many rows own it.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.ref_counts = [0] * num_pages
        self._first_unused_page = (
            1  # from here on no page was ever taken: memory that is not touched costs nothing
        )
        self._free_pages: list[int] = []
        self._evictable_pages: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._page_by_key: dict[PageKey, int] = {}
        self._content_by_page: dict[int, PageContent] = {}
        self._pages_by_parent_key: defaultdict[PageKey, set[int]] = defaultdict(
            set
        )  # the pages that follow the same beginning

    @property
    def num_free_pages(self) -> int:
        """How many pages can be taken."""
        return self.num_pages - self._first_unused_page + len(self._free_pages) + len(self._evictable_pages)

    @property
    def num_evictable_pages(self) -> int:
        """How many pages nobody owns and that may be asked for again."""
        return len(self._evictable_pages)

    def allocate(self) -> int:
        """A page for one owner; a kept one if no other is left."""
        if self._free_pages:
            page = self._free_pages.pop()
        elif self._first_unused_page < self.num_pages:
            page, self._first_unused_page = self._first_unused_page, self._first_unused_page + 1
        else:
            page, _ = self._evictable_pages.popitem(last=False)
            self._remove_from_prefix_cache(page)
        self.ref_counts[page] = 1
        return page

    def add_references(self, pages: Sequence[int]) -> None:
        """One owner more of each."""
        for page in pages:
            if not self.ref_counts[page]:
                del self._evictable_pages[page]
            self.ref_counts[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One owner less of each page of a row. Its last pages will be the first to go: the others serve without."""
        for page in reversed(pages):
            self.ref_counts[page] -= 1
            if self.ref_counts[page]:
                continue
            if page in self._content_by_page:
                self._evictable_pages[page] = None
            else:
                self._free_pages.append(page)

    def add_to_prefix_cache(self, page: int, content: PageContent) -> None:
        """A page may be found from now on; the first one with this content is.

        What it holds does not change, but more may be written after it, and then be published in its place.
        """
        if content.key not in self._page_by_key:
            if page in self._content_by_page:
                self._remove_from_prefix_cache(page)
            self._page_by_key[content.key], self._content_by_page[page] = page, content
            self._pages_by_parent_key[content.parent_key].add(page)

    def match_prefix(self, keys: Sequence[PageKey]) -> list[int]:
        """The pages of the longest beginning that is there. They are not taken yet: `share` them."""
        pages = []
        for key in keys:
            if key not in self._page_by_key:
                break
            pages.append(self._page_by_key[key])
        return pages

    def match_partial_page(self, parent_key: PageKey, tokens: Sequence[PageToken]) -> tuple[int, int]:
        """The page after this beginning that has most of `tokens` in common, and how many: 0, 0 if none has any."""
        best = 0, 0
        for page in self._pages_by_parent_key.get(parent_key, ()):
            token_pairs = zip(self._content_by_page[page].tokens, tokens, strict=False)
            num_common = next(
                (n for n, (cached, requested) in enumerate(token_pairs) if cached != requested), -1
            )
            if num_common < 0:
                num_common = min(len(self._content_by_page[page].tokens), len(tokens))
            if num_common > best[1]:
                best = page, num_common
        return best

    def _remove_from_prefix_cache(self, page: int) -> None:
        content = self._content_by_page.pop(page)
        del self._page_by_key[content.key]
        self._pages_by_parent_key[content.parent_key].remove(page)
        if not self._pages_by_parent_key[content.parent_key]:
            del self._pages_by_parent_key[content.parent_key]

    def clear_prefix_cache(self) -> None:
        """No page can be found any more; those that nobody owns are free."""
        self._free_pages += self._evictable_pages
        self._evictable_pages.clear()
        self._page_by_key.clear()
        self._content_by_page.clear()
        self._pages_by_parent_key.clear()

    def __contains__(self, key: PageKey) -> bool:
        return key in self._page_by_key

    def check_invariants(self) -> None:
        """Every page is owned, free or kept, and only one of them."""
        referenced = {page for page, ref_count in enumerate(self.ref_counts) if ref_count}
        free = [*self._free_pages, *range(self._first_unused_page, self.num_pages)]
        assert min(self.ref_counts) >= 0, "released more often than shared"
        assert len(referenced) + len(free) + len(self._evictable_pages) == self.num_pages - 1
        assert referenced | set(free) | set(self._evictable_pages) == set(range(1, self.num_pages))
        assert (
            set(self._evictable_pages)
            <= set(self._content_by_page)
            <= referenced | set(self._evictable_pages)
        )
        assert {page: key for key, page in self._page_by_key.items()} == {
            page: content.key for page, content in self._content_by_page.items()
        }
        assert {
            (page, parent_key) for parent_key, pages in self._pages_by_parent_key.items() for page in pages
        } == {(page, content.parent_key) for page, content in self._content_by_page.items()}


class PageKeys:
    """What each page of a row holds, chained: equal keys mean equal beginnings, pictures included.

    A mark covers an id, at places of a picture the picture and which of its rows, and where tokens see pictures beside
    the text what it sees.
    """

    def __init__(self, prompt: Prompt, uses_cross_attention: bool) -> None:
        self.prompt, self.uses_cross_attention = prompt, uses_cross_attention
        self.keys: list[PageKey] = []
        self.image_content_by_position: dict[int, str] = {}  # what of a picture stands at a position
        if not uses_cross_attention:
            for tiles, positions in zip(prompt.pictures, prompt.image_token_positions, strict=True):
                self.image_content_by_position.update(
                    (position, f"{tiles.content_hash}:{row}") for row, position in enumerate(positions)
                )

    def full_page_keys(self, ids: Sequence[int], length: int) -> list[PageKey]:
        """The keys of the pages that the first `length` of a row's ids fill."""
        for page_index in range(len(self.keys), length // PAGE_SIZE):
            self.keys.append(self.page_content(ids, page_index, length).key)
        return self.keys[: length // PAGE_SIZE]

    def page_content(self, ids: Sequence[int], page_index: int, length: int) -> PageContent:
        """What a page holds when `length` of a row's ids have been read."""
        parent_key = self.full_page_keys(ids, page_index * PAGE_SIZE)[-1] if page_index else b""
        tokens = self.page_tokens(ids, page_index * PAGE_SIZE, min((page_index + 1) * PAGE_SIZE, length))
        key = hashlib.sha256(parent_key + repr(tokens).encode()).digest()
        return PageContent(key, parent_key, tokens)

    def page_tokens(self, ids: Sequence[int], start: int, end: int) -> tuple[PageToken, ...]:
        """Of the positions `start` to `end`."""
        return tuple((ids[position], self._image_content(position)) for position in range(start, end))

    def fork(self) -> PageKeys:
        """The same so far."""
        other = PageKeys(self.prompt, self.uses_cross_attention)
        other.keys = list(self.keys)
        return other

    def round_down_to_image_boundary(self, length: int) -> int:
        """The most of the first `length` positions that do not end in the middle of a picture's places."""
        if not self.uses_cross_attention:
            for positions in self.prompt.image_token_positions:
                if positions[0] < length <= positions[-1]:
                    return positions[0]
        return length

    def _image_content(self, position: int) -> str:
        """What a position shows of a picture, or which picture it sees."""
        if not self.uses_cross_attention:
            return self.image_content_by_position.get(position, "")
        prompt = self.prompt
        index = prompt.image_index[min(position, len(prompt) - 1)]
        return prompt.pictures[index].content_hash if index >= 0 else ""
