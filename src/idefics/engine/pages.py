"""Who owns which page of the cache, and which pages can be used again. No torch, no tensors.

A page is owned (by one or several rows), or free, or kept: nobody owns it, but what it holds is in the index and may be
asked for again, until its room is wanted. Page 0 is never given out.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby

from idefics.prompt import Prompt

PAGE = 16  # positions of one page
Key = bytes


class Pages:
    """A pool of pages 1 to `count` - 1.

    Attributes:
        owners: for each page how many rows own it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.owners = [0] * count
        self._fresh = 1  # from here on no page was ever taken: memory that is not touched costs nothing
        self._freed: list[int] = []
        self._kept: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def room(self) -> int:
        """How many pages can be taken."""
        return self.count - self._fresh + len(self._freed) + len(self._kept)

    @property
    def kept(self) -> int:
        """How many pages nobody owns and that may be asked for again."""
        return len(self._kept)

    def take(self) -> int:
        """A page for one owner; a kept one if no other is left."""
        if self._freed:
            page = self._freed.pop()
        elif self._fresh < self.count:
            page, self._fresh = self._fresh, self._fresh + 1
        else:
            page, _ = self._kept.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self.owners[page] = 1
        return page

    def share(self, pages: Sequence[int]) -> None:
        """One owner more of each."""
        for page in pages:
            if not self.owners[page]:
                del self._kept[page]
            self.owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One owner less of each page of a row. Its last pages will be the first to go: the others serve without."""
        for page in reversed(pages):
            self.owners[page] -= 1
            if self.owners[page]:
                continue
            if page in self._key_of:
                self._kept[page] = None
            else:
                self._freed.append(page)

    def publish(self, page: int, key: Key) -> None:
        """A full page may be found from now on; the first one with this content is."""
        if key not in self._page_of:
            self._page_of[key], self._key_of[page] = page, key

    def find(self, keys: Sequence[Key]) -> list[int]:
        """The pages of the longest beginning that is there. They are not taken yet: `share` them."""
        found = []
        for key in keys:
            if key not in self._page_of:
                break
            found.append(self._page_of[key])
        return found

    def forget(self) -> None:
        """No page can be found any more; those that nobody owns are free."""
        self._freed += self._kept
        self._kept.clear()
        self._page_of.clear()
        self._key_of.clear()

    def __contains__(self, key: Key) -> bool:
        return key in self._page_of

    def check(self) -> None:
        """Every page is owned, free or kept, and only one of them."""
        owned = {page for page, owners in enumerate(self.owners) if owners}
        free = [*self._freed, *range(self._fresh, self.count)]
        assert min(self.owners) >= 0, "released more often than shared"
        assert len(owned) + len(free) + len(self._kept) == self.count - 1
        assert owned | set(free) | set(self._kept) == set(range(1, self.count))
        assert set(self._kept) <= set(self._key_of) <= owned | set(self._kept)
        assert {page: key for key, page in self._page_of.items()} == self._key_of


class Keys:
    """What each full page of a row holds, chained: equal keys mean equal beginnings, pictures included.

    A key covers ids, at places of a picture the picture and which of its rows, and where tokens see pictures beside the
    text what each of them sees.
    """

    def __init__(self, prompt: Prompt, beside: bool) -> None:
        self.prompt, self.beside = prompt, beside
        self.keys: list[Key] = []

    def upto(self, ids: Sequence[int], length: int) -> list[Key]:
        """The keys of the pages that the first `length` of a row's ids fill."""
        for number in range(len(self.keys), length // PAGE):
            start = number * PAGE
            digest = hashlib.blake2b(self.keys[-1] if self.keys else b"", digest_size=16)
            digest.update(array("q", ids[start : start + PAGE]).tobytes())
            digest.update(self._pictures(start, start + PAGE).encode())
            self.keys.append(digest.digest())
        return self.keys[: length // PAGE]

    def fork(self) -> Keys:
        """The same so far."""
        other = Keys(self.prompt, self.beside)
        other.keys = list(self.keys)
        return other

    def whole(self, pages: int) -> int:
        """The most of the first `pages` that end outside of every picture's places."""
        if self.beside:
            return pages
        for places in self.prompt.places:
            if places[0] < pages * PAGE <= places[-1]:
                return places[0] // PAGE
        return pages

    def _pictures(self, start: int, end: int) -> str:
        """What of pictures is on a page."""
        prompt = self.prompt
        if self.beside:
            last = prompt.sees[-1]
            seen = [prompt.sees[n] if n < len(prompt) else last for n in range(start, end)]
            runs = [(index, len(list(run))) for index, run in groupby(seen)]
            return ";".join(f"{prompt.pictures[i].key if i >= 0 else ''}*{n}" for i, n in runs)
        here = []
        for tiles, places in zip(prompt.pictures, prompt.places, strict=True):
            if places and places[0] < end and places[-1] >= start:
                rows = [(row, place - start) for row, place in enumerate(places) if start <= place < end]
                here.append(f"{tiles.key}:{rows}")
        return ";".join(here)
