"""What the caller of the engine holds: an answer as it grows, waited for by threads or by asyncio. No torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from idefics.engine.request import Request
from idefics.messages import Alternative, Finish, Usage


class Handle:
    """One request's answer. The engine's thread writes it; any thread reads it, waits for it or cancels it.

    Iterating gives ids as they come, in a `for` or an `async for`; `result` and `await` give the handle once it is
    done. Whoever leaves such a loop or wait early, by an error or a cancelled task, cancels the request.

    Attributes:
        request: what was asked.
        ids: what has been generated so far; a stop id is never among them.
        logprobs: natural-log probability of each of `ids` if `sampling.logprobs` asks for them; else empty.
        top_logprobs: the most likely tokens in the place of each of `ids` if `sampling.top_logprobs` asks for them.
        cached: how many tokens of its prompt were found in the cache when its turn came first; None until then.
        scores: of each of the request's endings the natural-log probability of each token, once done.
        score_tops: the most likely tokens in the place of each of those, if `sampling.top_logprobs` asks for them.
        finish_reason: why the answer ended, or None while it goes on or if it failed.
        error: what went wrong, if something did.
    """

    def __init__(self, request: Request, cancel: Callable[[Handle], None]) -> None:
        self.request = request
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[tuple[Alternative, ...]] = []
        self.cached: int | None = None
        self.scores: list[list[float]] = []
        self.score_tops: list[list[tuple[Alternative, ...]]] = []
        self.finish_reason: Finish | None = None
        self.error: Exception | None = None
        self._cancel = cancel
        self._changed = threading.Condition()
        self._ended = threading.Condition()  # apart: who waits for the end is not woken for each id
        self._listeners: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None or self.error is not None

    @property
    def usage(self) -> Usage:
        """What it has cost so far."""
        prompt, said = self.request.prompt, len(self.ids) + sum(map(len, self.scores))
        return Usage(len(prompt), said, len(prompt.pictures), self.cached or 0)

    @property
    def figures(self) -> str:
        """What came of it, for the log, which shows nothing of what is said."""
        usage, end = self.usage, self.finish_reason or type(self.error).__name__
        return (
            f"{usage.prompt_tokens} tokens of prompt, {usage.cached_tokens} of them found in the cache, "
            f"{usage.pictures} pictures, {usage.completion_tokens} tokens of answer or endings, {end}"
        )

    def cancel(self) -> None:
        """Ends the answer here, waiting or running; one that is done stays as it is."""
        self._cancel(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is done, or `timeout` seconds: whether it is. An interrupt cancels."""
        try:
            with self._ended:
                return self._ended.wait_for(lambda: self.done, timeout)
        except BaseException:
            self.cancel()
            raise

    def result(self) -> Handle:
        """Waits; the handle itself, or its error raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self

    def __iter__(self) -> Iterator[int]:
        seen = 0
        try:
            while True:
                with self._changed:
                    while len(self.ids) == seen and not self.done:
                        self._changed.wait()
                new = self.ids[seen:]
                yield from new
                seen += len(new)
                if self.done and seen == len(self.ids):
                    break
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def __await__(self) -> Generator[Any, None, Handle]:
        async def end() -> Handle:
            async for _ in self:
                pass
            return self

        return end().__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        listener = _wakes(loop, changed)
        with self._changed:
            self._listeners.append(listener)
        seen = 0
        try:
            while True:
                changed.clear()
                is_done, new = self.done, self.ids[seen:]  # in this order: what comes after wakes us again
                for id in new:
                    yield id
                seen += len(new)
                if is_done and seen == len(self.ids):
                    break
                if not new:
                    await changed.wait()
        finally:
            self.cancel()
            self._listeners.remove(listener)
        if self.error is not None:
            raise self.error

    def push(self, id: int, logprob: float | None, top: tuple[Alternative, ...]) -> None:
        """One id more; the engine alone calls this and what follows."""
        if logprob is not None:  # first: whoever sees an id may look for what belongs to it
            self.logprobs.append(logprob)
        if top:
            self.top_logprobs.append(top)
        self.ids.append(id)
        self._tell()

    def finish(self, reason: Finish) -> None:
        self.finish_reason = reason
        self._end()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._end()

    def left_behind(self, error: Exception) -> None:
        """In a forked process: the thread that writes the answer is not here, and locks may be held by it for ever."""
        self._changed, self._ended = threading.Condition(), threading.Condition()
        if not self.done:
            self.error = error

    def _end(self) -> None:
        self._tell()
        with self._ended:
            self._ended.notify_all()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
            for listener in self._listeners:
                listener()


def _wakes(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    return wake
