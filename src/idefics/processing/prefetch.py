"""The remote pictures of one prompt are fetched side by side, a few at once, and taken in their order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from functools import partial

from idefics.processing.fetch import Fetcher, is_data_uri, is_url, run_in_daemon_thread

MAX_CONCURRENT_FETCHES = (
    4  # that one prompt fetches, or has fetched and not taken yet: each may have megabytes
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetcher(Fetcher):
    """A fetcher that begins with the next addresses of a prompt before they are asked for.

    Attributes:
        pending_urls: addresses that are not begun, in their order.
        future_by_url: what each of those that are begun will give.
        num_uses_by_url: how often each address will be asked for; one that comes twice is fetched once.
    """

    pending_urls: deque[str] = field(default_factory=deque)
    future_by_url: dict[str, Future[bytes]] = field(default_factory=dict)
    num_uses_by_url: Counter[str] = field(default_factory=Counter)

    def get(self, url: str) -> bytes:
        """As `Fetcher.get`."""
        if url in self.pending_urls:  # out of its order
            self.pending_urls.remove(url)
            self._start(url)
        if url not in self.future_by_url:
            return Fetcher.get(self, url)
        try:
            return self.future_by_url[url].result()
        finally:
            self.num_uses_by_url[url] -= 1
            if self.num_uses_by_url[url] == 0:
                del self.future_by_url[url]
                self.start_next()

    def start_next(self) -> None:
        """Begins with one more."""
        if self.pending_urls:
            self._start(self.pending_urls.popleft())

    def _start(self, url: str) -> None:
        self.future_by_url[url] = run_in_daemon_thread(partial(Fetcher.get, self, url))


def create_prefetcher(fetcher: Fetcher, sources: Iterable[object]) -> Fetcher:
    """A fetcher for pictures and videos that are going to be opened in this order.

    Args:
        fetcher: what it does as, policy and limits included.
        sources: where they are; only addresses are fetched.
    """
    urls = [one for one in sources if isinstance(one, str) and is_url(one) and not is_data_uri(one)]
    num_uses = Counter(urls)
    if len(urls) < 2 or fetcher.policy == "off":
        return fetcher
    fetcher_fields = {one.name: getattr(fetcher, one.name) for one in fields(Fetcher)}
    prefetcher = Prefetcher(**fetcher_fields, pending_urls=deque(num_uses), num_uses_by_url=num_uses)
    for _ in range(MAX_CONCURRENT_FETCHES):
        prefetcher.start_next()
    return prefetcher
