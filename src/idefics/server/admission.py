"""Admission control: limits on the requests that are processed at the same time, and on their size."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from idefics.messages import PictureOrVideo, Video
from idefics.server.errors import APIError, shutting_down_error, too_many_requests_error
from idefics.server.settings import Settings

MAX_RETRY_AFTER = 60  # seconds
DURATION_SMOOTHING = 0.1  # weight of the latest request in the average duration


@dataclass(eq=False)
class AdmissionSlot:
    """The amounts that one admitted request has reserved, until it ends.

    Attributes:
        cancel: stops the request, which then answers with an error.
        is_background: whether it is a line of a batch, which no client waits for.
        usage: the amount by kind, as in `AdmissionControl.limits`.
        start_time: when the slot was acquired, by `time.monotonic`.
    """

    cancel: Callable[[], None]
    is_background: bool
    usage: Counter[str] = field(default_factory=Counter)
    start_time: float = field(default_factory=time.monotonic)


class AdmissionControl:
    """Adds up what all requests use, and refuses a request that would exceed a limit.

    All methods must be called in the event loop.

    A request that alone exceeds a limit is admitted if no other request uses anything of that kind.

    Background requests are admitted within what the others leave of a limit; what they use refuses no other request.

    Attributes:
        limits: the largest amounts of "requests", "pictures", "tokens" and "bytes".
        usage: the amounts in use, without those of background requests.
        background_usage: the amounts that background requests use.
        slots: the slot of each request.
        is_closing: whether the server is shutting down and admits no requests.
    """

    def __init__(self, settings: Settings, on_refused: Callable[[str], None]) -> None:
        """`on_refused` is called for each refused request with the reason: a kind of limit, or "closing"."""
        self.limits = {
            "requests": settings.requests_at_once,
            "pictures": settings.pictures_at_once,
            "tokens": settings.tokens_at_once,
            "bytes": settings.megabytes_at_once << 20,
        }
        self.usage: Counter[str] = Counter()
        self.background_usage: Counter[str] = Counter()
        self.slots: set[AdmissionSlot] = set()
        self.is_closing = False
        self._on_refused = on_refused
        self._average_duration = 1.0  # seconds of a request
        self._slot_released = asyncio.Event()

    @property
    def has_capacity(self) -> bool:
        """Whether a new request would be admitted: no limit on requests, pictures or tokens is reached."""
        return not self.is_closing and all(
            self.usage[kind] < self.limits[kind] for kind in ("requests", "pictures", "tokens")
        )

    def acquire_slot(
        self, cancel: Callable[[], None], *, is_background: bool = False, **amounts: int
    ) -> AdmissionSlot:
        """Admits a request and reserves amounts for it, as `reserve`; the caller must call `release_slot` when it ends.

        Args:
            cancel: stops the request when the server shuts down.
            is_background: whether no client waits for the request.
            amounts: amounts by their kinds in `limits`.

        Raises:
            APIError: 429, there are too many requests; 503, the server is shutting down.
        """
        if self.is_closing:
            self._on_refused("closing")
            raise shutting_down_error()
        slot = AdmissionSlot(cancel, is_background)
        self.reserve(slot, requests=1, **amounts)
        self.slots.add(slot)
        return slot

    def reserve(self, slot: AdmissionSlot, **amounts: int) -> None:
        """Adds amounts to what a request uses, by their kinds in `limits`: `pictures`, `tokens`, `bytes` of its body.

        Raises:
            APIError: 429, all requests together would exceed a limit; then nothing is added. The only request that uses
                a kind may exceed its limit.
        """
        for kind, amount in amounts.items():
            used = self.usage[kind] + (self.background_usage[kind] if slot.is_background else 0)
            if amount and used > slot.usage[kind] and used + amount > self.limits[kind]:
                if not slot.is_background:
                    self._on_refused(kind)
                raise self._limit_error(kind, used)
        self._usage_of_class(slot).update(amounts)
        slot.usage.update(amounts)

    def _usage_of_class(self, slot: AdmissionSlot) -> Counter[str]:
        """The amounts that background requests use, or that the others use, whichever the slot belongs to."""
        return self.background_usage if slot.is_background else self.usage

    def release_slot(self, slot: AdmissionSlot) -> None:
        """Subtracts what a request has reserved from `usage`. To be called once for each slot, as its request ends."""
        self.slots.remove(slot)
        self._usage_of_class(slot).subtract(slot.usage)
        duration = time.monotonic() - slot.start_time
        self._average_duration += DURATION_SMOOTHING * (duration - self._average_duration)
        self._slot_released.set()

    async def close(self, seconds: float) -> None:
        """Stops admitting requests, waits up to `seconds` for those admitted to end, and cancels the others."""
        self.is_closing = True
        try:
            async with asyncio.timeout(seconds):
                while self.slots:
                    self._slot_released.clear()
                    await self._slot_released.wait()
        except TimeoutError:
            for slot in list(self.slots):
                slot.cancel()

    def _limit_error(self, kind: str, used: int) -> APIError:
        """The error 429 for an exceeded limit; its Retry-After is the average duration of a request.

        Args:
            kind: the kind of the limit.
            used: the amount in use.
        """
        retry_after = min(max(math.ceil(self._average_duration), 1), MAX_RETRY_AFTER)
        return too_many_requests_error(
            f"the server is busy with {used:,} {kind}, and its limit is {self.limits[kind]:,}: "
            f"try again in {retry_after} s",
            retry_after,
        )


def count_pictures(one: PictureOrVideo) -> int:
    """How many pictures a picture or a video counts for: a video, for those of its frames that are given."""
    return len(one.source) if isinstance(one, Video) and isinstance(one.source, Sequence) else 1
