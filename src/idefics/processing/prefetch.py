"""The remote pictures of one prompt are fetched side by side, a few at once, and taken in their order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from functools import partial

from idefics.processing.fetch import Fetcher, in_daemon_thread, is_data, is_remote

AT_ONCE = 4  # that one prompt fetches, or has fetched and not taken yet: each may have megabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetcher(Fetcher):
    """A fetcher that begins with the next addresses of a prompt before they are asked for.

    Attributes:
        waiting: addresses that are not begun, in their order.
        started: what each of those that are begun will give.
        uses: how often each address will be asked for; one that comes twice is fetched once.
    """

    waiting: deque[str] = field(default_factory=deque)
    started: dict[str, Future[bytes]] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    def get(self, url: str) -> bytes:
        """As `Fetcher.get`."""
        if url in self.waiting:  # out of its order
            self.waiting.remove(url)
            self._start(url)
        if url not in self.started:
            return Fetcher.get(self, url)
        try:
            return self.started[url].result()
        finally:
            self.uses[url] -= 1
            if self.uses[url] == 0:
                del self.started[url]
                self.start_next()

    def start_next(self) -> None:
        """Begins with one more."""
        if self.waiting:
            self._start(self.waiting.popleft())

    def _start(self, url: str) -> None:
        self.started[url] = in_daemon_thread(partial(Fetcher.get, self, url))


def fetching_ahead(fetcher: Fetcher, sources: Iterable[object]) -> Fetcher:
    """A fetcher for pictures and videos that are going to be opened in this order.

    Args:
        fetcher: what it does as, policy and limits included.
        sources: where they are; only addresses are fetched.
    """
    addresses = [one for one in sources if isinstance(one, str) and is_remote(one) and not is_data(one)]
    uses = Counter(addresses)
    if len(addresses) < 2 or fetcher.policy == "off":
        return fetcher
    own = {one.name: getattr(fetcher, one.name) for one in fields(Fetcher)}
    ahead = Prefetcher(**own, waiting=deque(uses), uses=uses)
    for _ in range(AT_ONCE):
        ahead.start_next()
    return ahead
