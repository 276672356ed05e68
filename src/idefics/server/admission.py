"""Who is let in: so many requests, bytes, tokens and pictures at once. Knows no model."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from idefics.server.faults import Fault, busy, closing
from idefics.server.settings import Settings

LONGEST_WAIT = 60  # seconds that a client is asked to wait, at most


class Place:
    """What one request takes, from its first moment to its last."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.pictures = self.tokens = self.bytes = 0
        self.began = time.monotonic()
        self.end = end  # stops the request, which then answers with an error


class Admission:
    """Counts what is there. Of one event loop.

    A request that alone is larger than a limit is let in if nothing else of its kind is there.

    Attributes:
        is_closing: nobody is let in any more.
        refused: told why, each time.
    """

    def __init__(self, settings: Settings, refused: Callable[[str], None]) -> None:
        self.settings, self.refused = settings, refused
        self.places: set[Place] = set()
        self.pictures = self.tokens = self.bytes = 0
        self.is_closing = False
        self._usual = 1.0  # seconds of a request, lately
        self._left = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether a small request would be let in."""
        limits = self.settings
        return (
            not self.is_closing
            and len(self.places) < limits.requests_at_once
            and self.pictures < limits.pictures_at_once
            and self.tokens < limits.tokens_at_once
        )

    def enter(self, end: Callable[[], None]) -> Place:
        """One request more, which `leave`s in the end.

        Raises:
            Fault: 429, there are as many as may be; 503, the server goes down.
        """
        if self.is_closing:
            self.refused("closing")
            raise closing()
        self._check("requests", len(self.places), 0, 1, self.settings.requests_at_once)
        place = Place(end)
        self.places.add(place)
        return place

    def take(self, place: Place, *, pictures: int = 0, tokens: int = 0, bytes: int = 0) -> None:
        """A request turns out to have so many more pictures, tokens, or bytes of its body. Raises as `enter`."""
        limits = self.settings
        self._check("pictures", self.pictures, place.pictures, pictures, limits.pictures_at_once)
        self._check("tokens", self.tokens, place.tokens, tokens, limits.tokens_at_once)
        self._check("bytes", self.bytes, place.bytes, bytes, limits.megabytes_at_once << 20)
        place.bytes += bytes
        self.bytes += bytes
        place.pictures += pictures
        place.tokens += tokens
        self.pictures += pictures
        self.tokens += tokens

    def leave(self, place: Place) -> None:
        """A request has ended, in whatever way."""
        self.places.remove(place)
        self.pictures -= place.pictures
        self.tokens -= place.tokens
        self.bytes -= place.bytes
        self._usual += 0.1 * (time.monotonic() - place.began - self._usual)
        self._left.set()

    async def close(self, seconds: float) -> None:
        """Lets nobody in, waits so long until all have left, and then ends those who have not."""
        self.is_closing = True
        try:
            async with asyncio.timeout(seconds):
                while self.places:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            for place in list(self.places):
                place.end()

    def _check(self, kind: str, there: int, own: int, more: int, most: int) -> None:
        """That there is room for `more`, where of what is there so much is the request's own."""
        if more and there > own and there + more > most:
            self.refused(kind)
            raise self._full(kind, there, most)

    def _full(self, kind: str, there: int, most: int) -> Fault:
        seconds = min(max(math.ceil(self._usual), 1), LONGEST_WAIT)
        return busy(
            f"{there:,} {kind} are being answered or wait, and at most {most:,} may: ask again in {seconds} s",
            seconds,
        )
