"""Who is let in: so many requests, bytes, tokens and pictures at once. Knows no model."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from idefics.server.errors import APIError, shutting_down_error, too_many_requests_error
from idefics.server.settings import Settings

MAX_RETRY_AFTER = 60  # seconds that a client is asked to wait, at most


class AdmissionSlot:
    """What one request takes, from its first moment to its last."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.num_pictures = self.num_tokens = self.num_bytes = 0
        self.start_time = time.monotonic()
        self.cancel = cancel  # stops the request, which then answers with an error


class AdmissionControl:
    """Counts what is there. Of one event loop.

    A request that alone is larger than a limit is let in if nothing else of its kind is there.

    Attributes:
        is_closing: nobody is let in any more.
        on_refused: told why, each time.
    """

    def __init__(self, settings: Settings, on_refused: Callable[[str], None]) -> None:
        self.settings, self.on_refused = settings, on_refused
        self.slots: set[AdmissionSlot] = set()
        self.num_pictures = self.num_tokens = self.num_bytes = 0
        self.is_closing = False
        self._mean_duration = 1.0  # seconds of a request, lately
        self._slot_released = asyncio.Event()

    @property
    def has_capacity(self) -> bool:
        """Whether a small request would be let in."""
        limits = self.settings
        return (
            not self.is_closing
            and len(self.slots) < limits.requests_at_once
            and self.num_pictures < limits.pictures_at_once
            and self.num_tokens < limits.tokens_at_once
        )

    def acquire_slot(self, cancel: Callable[[], None]) -> AdmissionSlot:
        """One request more, which `leave`s in the end.

        Raises:
            Fault: 429, there are as many as may be; 503, the server goes down.
        """
        if self.is_closing:
            self.on_refused("closing")
            raise shutting_down_error()
        self._check_limit("requests", len(self.slots), 0, 1, self.settings.requests_at_once)
        slot = AdmissionSlot(cancel)
        self.slots.add(slot)
        return slot

    def reserve(self, slot: AdmissionSlot, *, pictures: int = 0, tokens: int = 0, bytes: int = 0) -> None:
        """A request turns out to have so many more pictures, tokens, or bytes of its body. Raises as `enter`."""
        limits = self.settings
        self._check_limit("pictures", self.num_pictures, slot.num_pictures, pictures, limits.pictures_at_once)
        self._check_limit("tokens", self.num_tokens, slot.num_tokens, tokens, limits.tokens_at_once)
        self._check_limit("bytes", self.num_bytes, slot.num_bytes, bytes, limits.megabytes_at_once << 20)
        slot.num_bytes += bytes
        self.num_bytes += bytes
        slot.num_pictures += pictures
        slot.num_tokens += tokens
        self.num_pictures += pictures
        self.num_tokens += tokens

    def release_slot(self, slot: AdmissionSlot) -> None:
        """A request has ended, in whatever way."""
        self.slots.remove(slot)
        self.num_pictures -= slot.num_pictures
        self.num_tokens -= slot.num_tokens
        self.num_bytes -= slot.num_bytes
        self._mean_duration += 0.1 * (time.monotonic() - slot.start_time - self._mean_duration)
        self._slot_released.set()

    async def close(self, seconds: float) -> None:
        """Lets nobody in, waits so long until all have left, and then ends those who have not."""
        self.is_closing = True
        try:
            async with asyncio.timeout(seconds):
                while self.slots:
                    self._slot_released.clear()
                    await self._slot_released.wait()
        except TimeoutError:
            for slot in list(self.slots):
                slot.cancel()

    def _check_limit(self, kind: str, in_use: int, used_by_request: int, requested: int, limit: int) -> None:
        """That there is room for `requested`, where of what is there so much is the request's own."""
        if requested and in_use > used_by_request and in_use + requested > limit:
            self.on_refused(kind)
            raise self._limit_error(kind, in_use, limit)

    def _limit_error(self, kind: str, in_use: int, limit: int) -> APIError:
        retry_after = min(max(math.ceil(self._mean_duration), 1), MAX_RETRY_AFTER)
        return too_many_requests_error(
            f"{in_use:,} {kind} are being answered or wait, and at most {limit:,} may: ask again in {retry_after} s",
            retry_after,
        )
