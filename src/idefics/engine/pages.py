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

PAGE = 16  # positions of one page
Key = bytes
Mark = tuple[int, str]  # all that matters of one position: its id, and what it shows or sees of pictures


class Content(NamedTuple):
    """What a page holds.

    Attributes:
        key: of all up to its last mark, the pages before it included.
        after: the key of the page before it.
        marks: of its positions; fewer than a page has where no more was read.
    """

    key: Key
    after: Key
    marks: tuple[Mark, ...]


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
        self._content: dict[int, Content] = {}
        self._after: defaultdict[Key, set[int]] = defaultdict(set)  # the pages that follow the same beginning

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
            self._withdraw(page)
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
            if page in self._content:
                self._kept[page] = None
            else:
                self._freed.append(page)

    def publish(self, page: int, content: Content) -> None:
        """A page may be found from now on; the first one with this content is.

        What it holds does not change, but more may be written after it, and then be published in its place.
        """
        if content.key not in self._page_of:
            if page in self._content:
                self._withdraw(page)
            self._page_of[content.key], self._content[page] = page, content
            self._after[content.after].add(page)

    def find(self, keys: Sequence[Key]) -> list[int]:
        """The pages of the longest beginning that is there. They are not taken yet: `share` them."""
        found = []
        for key in keys:
            if key not in self._page_of:
                break
            found.append(self._page_of[key])
        return found

    def partly(self, after: Key, marks: Sequence[Mark]) -> tuple[int, int]:
        """The page after this beginning that has most of `marks` in common, and how many: 0, 0 if none has any."""
        best = 0, 0
        for page in self._after.get(after, ()):
            both = zip(self._content[page].marks, marks, strict=False)
            common = next((n for n, (mine, wanted) in enumerate(both) if mine != wanted), -1)
            if common < 0:
                common = min(len(self._content[page].marks), len(marks))
            if common > best[1]:
                best = page, common
        return best

    def _withdraw(self, page: int) -> None:
        content = self._content.pop(page)
        del self._page_of[content.key]
        self._after[content.after].remove(page)
        if not self._after[content.after]:
            del self._after[content.after]

    def forget(self) -> None:
        """No page can be found any more; those that nobody owns are free."""
        self._freed += self._kept
        self._kept.clear()
        self._page_of.clear()
        self._content.clear()
        self._after.clear()

    def __contains__(self, key: Key) -> bool:
        return key in self._page_of

    def check(self) -> None:
        """Every page is owned, free or kept, and only one of them."""
        owned = {page for page, owners in enumerate(self.owners) if owners}
        free = [*self._freed, *range(self._fresh, self.count)]
        assert min(self.owners) >= 0, "released more often than shared"
        assert len(owned) + len(free) + len(self._kept) == self.count - 1
        assert owned | set(free) | set(self._kept) == set(range(1, self.count))
        assert set(self._kept) <= set(self._content) <= owned | set(self._kept)
        assert {page: key for key, page in self._page_of.items()} == {
            page: content.key for page, content in self._content.items()
        }
        assert {(page, after) for after, pages in self._after.items() for page in pages} == {
            (page, content.after) for page, content in self._content.items()
        }


class Keys:
    """What each page of a row holds, chained: equal keys mean equal beginnings, pictures included.

    A mark covers an id, at places of a picture the picture and which of its rows, and where tokens see pictures beside
    the text what it sees.
    """

    def __init__(self, prompt: Prompt, beside: bool) -> None:
        self.prompt, self.beside = prompt, beside
        self.keys: list[Key] = []
        self.shown: dict[int, str] = {}  # what of a picture stands at a position
        if not beside:
            for tiles, places in zip(prompt.pictures, prompt.places, strict=True):
                self.shown.update((place, f"{tiles.key}:{row}") for row, place in enumerate(places))

    def upto(self, ids: Sequence[int], length: int) -> list[Key]:
        """The keys of the pages that the first `length` of a row's ids fill."""
        for number in range(len(self.keys), length // PAGE):
            self.keys.append(self.content(ids, number, length).key)
        return self.keys[: length // PAGE]

    def content(self, ids: Sequence[int], number: int, length: int) -> Content:
        """What a page holds when `length` of a row's ids have been read."""
        after = self.upto(ids, number * PAGE)[-1] if number else b""
        marks = self.marks(ids, number * PAGE, min((number + 1) * PAGE, length))
        key = hashlib.sha256(after + repr(marks).encode()).digest()
        return Content(key, after, marks)

    def marks(self, ids: Sequence[int], start: int, end: int) -> tuple[Mark, ...]:
        """Of the positions `start` to `end`."""
        return tuple((ids[place], self._seen(place)) for place in range(start, end))

    def fork(self) -> Keys:
        """The same so far."""
        other = Keys(self.prompt, self.beside)
        other.keys = list(self.keys)
        return other

    def outside(self, length: int) -> int:
        """The most of the first `length` positions that do not end in the middle of a picture's places."""
        if not self.beside:
            for places in self.prompt.places:
                if places[0] < length <= places[-1]:
                    return places[0]
        return length

    def _seen(self, place: int) -> str:
        """What a position shows of a picture, or which picture it sees."""
        if not self.beside:
            return self.shown.get(place, "")
        prompt = self.prompt
        index = prompt.sees[min(place, len(prompt) - 1)]
        return prompt.pictures[index].key if index >= 0 else ""
