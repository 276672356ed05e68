"""Allocates the KV cache's pages; finds computed pages by their content (prefix cache). No torch, no tensors.

A page is in use (referenced by one or several sequences), free, or evictable: no sequence references it, but its
content is in the prefix cache and may be reused until the page is needed. Page 0 is never allocated.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from copy import copy
from itertools import takewhile
from typing import NamedTuple

from idefics.prompt import Prompt

PAGE_SIZE = 16  # positions of one page
PageKey = bytes  # a hash of a page's content and of all pages before it
PageToken = tuple[
    int, str
]  # one position: its token id, and the image content at it or attended to by it ("" if none)


class PageContent(NamedTuple):
    """The content of a page, as stored in the prefix cache.

    Attributes:
        key: hash of `parent_key` and `tokens`.
        parent_key: the key of the page before it; for the first see `PageKeys.root_key`.
        tokens: one for each computed position, at most `PAGE_SIZE`.
    """

    key: PageKey
    parent_key: PageKey
    tokens: tuple[PageToken, ...]


class PagePool:
    """Allocates the KV cache's pages 1 to `num_pages` - 1, counts their references, and holds the prefix cache.

    Attributes:
        ref_counts: for each page how many sequences reference it.
        first_unused_page: pages from here on were never allocated.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.ref_counts = [0] * num_pages
        # Untouched memory costs nothing, so free pages that were allocated before are taken first.
        self.first_unused_page = 1
        self._free_pages: list[int] = []
        self._evictable_pages: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._page_by_key: dict[PageKey, int] = {}
        self._content_by_page: dict[int, PageContent] = {}
        self._pages_by_parent_key: defaultdict[PageKey, set[int]] = defaultdict(set)

    @property
    def num_free_pages(self) -> int:
        """How many pages `allocate` can return, evictable ones included."""
        return self.num_pages - self.first_unused_page + len(self._free_pages) + len(self._evictable_pages)

    def allocate(self) -> int:
        """Returns a page with one reference; evicts the least recently used cached page if no other is free."""
        if self._free_pages:
            page = self._free_pages.pop()
        elif self.first_unused_page < self.num_pages:
            page, self.first_unused_page = self.first_unused_page, self.first_unused_page + 1
        else:
            page, _ = self._evictable_pages.popitem(last=False)
            self._remove_from_prefix_cache(page)
        self.ref_counts[page] = 1
        return page

    def add_references(self, pages: Sequence[int]) -> None:
        """Increments the reference count of each page; evictable pages are in use again."""
        for page in pages:
            if not self.ref_counts[page]:
                del self._evictable_pages[page]
            self.ref_counts[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Decrements the reference count of each of a sequence's pages; unreferenced ones become evictable or free.

        The last pages will be evicted first: a prefix is useful without the pages after it, but not vice versa.
        """
        for page in reversed(pages):
            self.ref_counts[page] -= 1
            if self.ref_counts[page]:
                continue
            if page in self._content_by_page:
                self._evictable_pages[page] = None
            else:
                self._free_pages.append(page)

    def add_to_prefix_cache(self, page: int, content: PageContent) -> None:
        """Registers a page under its content, unless another page with the same content is registered.

        A partly filled page may be added again when it holds more; the longer content replaces the shorter.
        """
        if content.key not in self._page_by_key:
            if page in self._content_by_page:
                self._remove_from_prefix_cache(page)
            self._page_by_key[content.key], self._content_by_page[page] = page, content
            self._pages_by_parent_key[content.parent_key].add(page)

    def match_prefix(self, keys: Sequence[PageKey]) -> list[int]:
        """The cached pages of the longest prefix of `keys`. The caller must reference them with `add_references`."""
        pages = []
        for key in keys:
            if key not in self._page_by_key:
                break
            pages.append(self._page_by_key[key])
        return pages

    def match_partial_page(self, parent_key: PageKey, tokens: Sequence[PageToken]) -> tuple[int, int]:
        """Finds the cached page after `parent_key` that shares the most leading tokens with `tokens`.

        Returns:
            The page and the number of shared tokens; (0, 0) if there is none.
        """
        best = 0, 0
        for page in self._pages_by_parent_key.get(parent_key, ()):
            token_pairs = zip(self._content_by_page[page].tokens, tokens, strict=False)
            num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], token_pairs))
            if num_common > best[1]:
                best = page, num_common
        return best

    def _remove_from_prefix_cache(self, page: int) -> None:
        """Removes a page from the prefix cache, in which it must be."""
        content = self._content_by_page.pop(page)
        del self._page_by_key[content.key]
        self._pages_by_parent_key[content.parent_key].remove(page)
        if not self._pages_by_parent_key[content.parent_key]:
            del self._pages_by_parent_key[content.parent_key]

    def clear_prefix_cache(self) -> None:
        """Empties the prefix cache; evictable pages become free."""
        self._free_pages += self._evictable_pages
        self._evictable_pages.clear()
        self._page_by_key.clear()
        self._content_by_page.clear()
        self._pages_by_parent_key.clear()


class PageKeys:
    """The prefix-cache keys of a sequence's pages: equal keys mean equal prefixes, pictures included.

    Each position contributes its token id and its image content: at an inline image token the picture and the row of
    its features, in a cross-attention model the picture that the token attends to.

    Attributes:
        root_key: the parent of the first page's key; an adapter's own, since its keys and values are others.
        keys: the keys that have been computed so far.
        image_contents: the image content of each position of the prompt; "" if there is none.
        generated_content: the image content of every position after the prompt.
        image_token_positions: for each inline picture the positions of its image tokens.
    """

    def __init__(self, prompt: Prompt, uses_cross_attention: bool) -> None:
        self.root_key: PageKey = b"" if prompt.adapter is None else prompt.adapter.key.encode()
        self.keys: list[PageKey] = []
        if uses_cross_attention:
            hashes = [*(image.feature_key for image in prompt.pictures), ""]  # "" is also the last: index -1
            self.image_contents = [hashes[index] for index in prompt.image_index]
            self.generated_content = self.image_contents[-1]
            self.image_token_positions: Sequence[Sequence[int]] = ()
            return
        self.image_contents, self.generated_content = [""] * len(prompt), ""
        self.image_token_positions = prompt.image_token_positions
        for image, positions in zip(prompt.pictures, prompt.image_token_positions, strict=True):
            key = image.feature_key
            for row, position in enumerate(positions):
                self.image_contents[position] = f"{key}:{row}"

    def full_page_keys(self, ids: Sequence[int], length: int) -> list[PageKey]:
        """The keys of the pages that the first `length` of a sequence's ids fill completely."""
        for page_index in range(len(self.keys), length // PAGE_SIZE):
            self.keys.append(self.page_content(ids, page_index, length).key)
        return self.keys[: length // PAGE_SIZE]

    def page_content(self, ids: Sequence[int], page_index: int, length: int) -> PageContent:
        """The content of the sequence's page number `page_index`, when the first `length` of its ids are computed."""
        start = page_index * PAGE_SIZE
        parent_key = self.full_page_keys(ids, start)[-1] if page_index else self.root_key
        page_ids = ids[start : min(start + PAGE_SIZE, length)]
        image_contents = self.image_contents[start : start + len(page_ids)]
        image_contents += [self.generated_content] * (len(page_ids) - len(image_contents))
        tokens = tuple(zip(page_ids, image_contents, strict=True))
        key = hashlib.sha256(parent_key + repr(tokens).encode()).digest()
        return PageContent(key, parent_key, tokens)

    def fork(self) -> PageKeys:
        """A copy for a sequence that shares this one's ids so far and continues with others."""
        other = copy(self)
        other.keys = list(self.keys)
        return other

    def round_down_to_image_boundary(self, length: int) -> int:
        """The largest prefix length up to `length` that splits no inline picture's image tokens.

        `length` itself, or the position of a picture's first image token if `length` lies within its tokens.
        """
        for positions in self.image_token_positions:
            if positions[0] < length <= positions[-1]:
                return positions[0]
        return length
