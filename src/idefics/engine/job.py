"""A request on its way through the engine: its rows, and what of them has been read. No torch, no tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from idefics.engine.handle import Handle
from idefics.engine.pages import PAGE, Key, Keys
from idefics.engine.request import Request


class Sight(NamedTuple):
    """The tokens `first` to `last` of a row are, or see, a picture of its prompt."""

    picture: int
    first: int
    last: float


class Branch:
    """A row: ids, and the pages that hold what has been read of them.

    Attributes:
        ids: prompt and answer.
        read: how many of them have been read.
        pages: one for each 16 positions, as far as there is need.
        keys: what its full pages hold.
        published: how many of its pages are in the index.
    """

    __slots__ = ("ids", "job", "keys", "pages", "published", "read")

    def __init__(self, job: Job, ids: list[int], keys: Keys) -> None:
        self.job, self.ids, self.keys = job, ids, keys
        self.read = self.published = 0
        self.pages: list[int] = []

    def fork(self, id: int) -> Branch:
        """A row that goes on with `id` after what this one has read."""
        other = Branch(self.job, [*self.ids, id], self.keys.fork())
        other.read, other.published, other.pages = self.read, self.published, list(self.pages)
        return other

    def unpublished(self) -> Iterator[Key]:
        """Keys of the pages that are yet to be read."""
        yield from self.keys.upto(self.ids, len(self.ids))[self.published :]


class Job:
    """A request and how far it is.

    Attributes:
        room: how many tokens the answer may have.
        branches: its rows: one until its prompt has been read, then as many as there are beams.
        sights: where its pictures are needed, in their order.
        groups: for endings that are yet to be read, in how many tokens each group of them.
        draws: what its tokens are drawn with, which is kept when it has to wait again.
        search: what is known of its beams or endings.
    """

    def __init__(self, request: Request, handle: Handle, room: int, beside: bool) -> None:
        self.request, self.handle, self.room = request, handle, room
        self.beside = beside
        self.sights = list(_sights(request, beside))
        self.branches: list[Branch] = []
        self.draws: Any = None
        self.start_over()

    @property
    def is_reading(self) -> bool:
        """Whether its prompt or its endings are being read."""
        if self.groups:
            return True
        branch = self.branches[0]
        return len(self.branches) == 1 and (
            branch.read < len(self.request.prompt) or branch.read < len(branch.ids) - 1
        )

    @property
    def most_pages(self) -> int:
        """How many pages it may come to own. The last token of an answer is not read."""
        prompt, rows = len(self.request.prompt), self.request.rows
        shared = prompt // PAGE
        return shared + rows * (-(-(prompt + max(self.room - 1, 0)) // PAGE) - shared)

    def start_over(self) -> None:
        """Nothing of it is in the cache.

        One row keeps its answer so far and reads it again. Beams are searched anew: they find the same.
        """
        ids = [*self.request.prompt.ids, *(self.handle.ids if self.request.rows == 1 else ())]
        self.branches = [Branch(self, ids, Keys(self.request.prompt, self.beside))]
        self.groups: dict[int, int] = {}
        self.search: Any = None


def _sights(request: Request, beside: bool) -> Iterator[Sight]:
    prompt = request.prompt
    if not beside:
        for index, places in enumerate(prompt.places):
            yield Sight(index, places[0], places[-1])
        return
    for index in range(len(prompt.pictures)):
        tokens = [token for token, seen in enumerate(prompt.sees) if seen == index]
        if tokens:
            is_last = prompt.sees[-1] == index  # and so all of the answer sees it
            yield Sight(index, tokens[0], float("inf") if is_last else tokens[-1])
