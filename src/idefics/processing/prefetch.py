"""Fetches the remote pictures of one prompt ahead of their use, a few at the same time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from functools import partial

from idefics.processing.fetch import Fetcher, is_data_uri, is_url, run_in_daemon_thread

MAX_CONCURRENT_FETCHES = (
    4  # per prompt, pictures that are fetched and not used yet among them: each may have megabytes
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetcher(Fetcher):
    """A fetcher that fetches the next URLs of a prompt before `get` is called for them.

    Attributes:
        pending_urls: URLs whose fetch has not started, in the order of the prompt.
        future_by_url: the results of started fetches.
        num_uses_by_url: how often `get` will still be called for each URL; one that occurs twice is fetched once.
    """

    pending_urls: deque[str] = field(default_factory=deque)
    future_by_url: dict[str, Future[bytes]] = field(default_factory=dict)
    num_uses_by_url: Counter[str] = field(default_factory=Counter)

    def get(self, url: str) -> bytes:
        """The content of a URL, as `Fetcher.get`: waits for its fetch if that has started, else fetches it now.

        After the last use of a URL the next pending one starts to be fetched.
        """
        while url in self.pending_urls:  # called out of order
            self.start_next_fetch()
        if url not in self.future_by_url:
            return Fetcher.get(self, url)
        try:
            return self.future_by_url[url].result()
        finally:
            self.num_uses_by_url[url] -= 1
            if self.num_uses_by_url[url] == 0:
                del self.future_by_url[url]
                self.start_next_fetch()

    def start_next_fetch(self) -> None:
        """Starts to fetch the next pending URL, if there is one."""
        if self.pending_urls:
            url = self.pending_urls.popleft()
            self.future_by_url[url] = run_in_daemon_thread(partial(Fetcher.get, self, url))


def create_prefetcher(fetcher: Fetcher, sources: Iterable[object]) -> Fetcher:
    """Starts to fetch pictures and videos that will be opened in this order, a few at the same time.

    Args:
        fetcher: gives the policy and the limits.
        sources: sources of pictures and videos, of which only http(s) URLs are fetched.

    Returns:
        A `Prefetcher` for them; `fetcher` itself if there are fewer than two URLs, or they may not be fetched.
    """
    urls = [one for one in sources if isinstance(one, str) and is_url(one) and not is_data_uri(one)]
    num_uses = Counter(urls)
    if len(urls) < 2 or fetcher.policy == "off":
        return fetcher
    fetcher_fields = {one.name: getattr(fetcher, one.name) for one in fields(Fetcher)}
    prefetcher = Prefetcher(**fetcher_fields, pending_urls=deque(num_uses), num_uses_by_url=num_uses)
    for _ in range(MAX_CONCURRENT_FETCHES):
        prefetcher.start_next_fetch()
    return prefetcher
