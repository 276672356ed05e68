"""What the caller of the engine holds: an answer as it grows, waited for by threads or by asyncio. No torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from idefics.engine.request import Request
from idefics.messages import Alternative, FinishReason, Usage


class RequestHandle:
    """One request's answer. The engine's thread writes it; any thread reads it, waits for it or cancels it.

    Iterating gives ids as they come, in a `for` or an `async for`; `result` and `await` give the handle once it is
    done. Whoever leaves such a loop or wait early, by an error or a cancelled task, cancels the request.

    Attributes:
        request: what was asked.
        ids: what has been generated so far; a stop id is never among them.
        logprobs: natural-log probability of each of `ids` if `sampling.logprobs` asks for them; else empty.
        top_logprobs: the most likely tokens in the place of each of `ids` if `sampling.top_logprobs` asks for them.
        num_cached_tokens: how many tokens of its prompt were found in the cache when its turn came first; None until then.
        continuation_logprobs: of each of the request's endings the natural-log probability of each token, once done.
        continuation_top_logprobs: the most likely tokens in the place of each of those, if `sampling.top_logprobs` asks for them.
        finish_reason: why the answer ended, or None while it goes on or if it failed.
        error: what went wrong, if something did.
    """

    def __init__(self, request: Request, cancel: Callable[[RequestHandle], None]) -> None:
        self.request = request
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[tuple[Alternative, ...]] = []
        self.num_cached_tokens: int | None = None
        self.continuation_logprobs: list[list[float]] = []
        self.continuation_top_logprobs: list[list[tuple[Alternative, ...]]] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._cancel_request = cancel
        self._changed_condition = threading.Condition()
        self._done_condition = threading.Condition()  # apart: who waits for the end is not woken for each id
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_done(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None or self.error is not None

    @property
    def usage(self) -> Usage:
        """What it has cost so far."""
        prompt, num_completion_tokens = (
            self.request.prompt,
            len(self.ids) + sum(map(len, self.continuation_logprobs)),
        )
        return Usage(len(prompt), num_completion_tokens, len(prompt.pictures), self.num_cached_tokens or 0)

    @property
    def log_summary(self) -> str:
        """What came of it, for the log, which shows nothing of what is said."""
        usage, outcome = self.usage, self.finish_reason or type(self.error).__name__
        return (
            f"{usage.prompt_tokens} tokens of prompt, {usage.cached_tokens} of them found in the cache, "
            f"{usage.pictures} pictures, {usage.completion_tokens} tokens of answer or endings, {outcome}"
        )

    def cancel(self) -> None:
        """Ends the answer here, waiting or running; one that is done stays as it is."""
        self._cancel_request(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is done, or `timeout` seconds: whether it is. An interrupt cancels."""
        try:
            with self._done_condition:
                return self._done_condition.wait_for(lambda: self.is_done, timeout)
        except BaseException:
            self.cancel()
            raise

    def result(self) -> RequestHandle:
        """Waits; the handle itself, or its error raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self

    def __iter__(self) -> Iterator[int]:
        num_yielded = 0
        try:
            while True:
                with self._changed_condition:
                    while len(self.ids) == num_yielded and not self.is_done:
                        self._changed_condition.wait()
                new = self.ids[num_yielded:]
                yield from new
                num_yielded += len(new)
                if self.is_done and num_yielded == len(self.ids):
                    break
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def __await__(self) -> Generator[Any, None, RequestHandle]:
        async def wait_until_done() -> RequestHandle:
            async for _ in self:
                pass
            return self

        return wait_until_done().__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        listener = _make_waker(loop, changed)
        with self._changed_condition:
            self._listeners.append(listener)
        num_yielded = 0
        try:
            while True:
                changed.clear()
                is_done, new = (
                    self.is_done,
                    self.ids[num_yielded:],
                )  # in this order: what comes after wakes us again
                for id in new:
                    yield id
                num_yielded += len(new)
                if is_done and num_yielded == len(self.ids):
                    break
                if not new:
                    await changed.wait()
        finally:
            self.cancel()
            self._listeners.remove(listener)
        if self.error is not None:
            raise self.error

    def append_token(self, id: int, logprob: float | None, top_logprobs: tuple[Alternative, ...]) -> None:
        """One id more; the engine alone calls this and what follows."""
        if logprob is not None:  # first: whoever sees an id may look for what belongs to it
            self.logprobs.append(logprob)
        if top_logprobs:
            self.top_logprobs.append(top_logprobs)
        self.ids.append(id)
        self._notify_changed()

    def finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._notify_done()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._notify_done()

    def fail_after_fork(self, error: Exception) -> None:
        """In a forked process: the thread that writes the answer is not here, and locks may be held by it for ever."""
        self._changed_condition, self._done_condition = threading.Condition(), threading.Condition()
        if not self.is_done:
            self.error = error

    def _notify_done(self) -> None:
        self._notify_changed()
        with self._done_condition:
            self._done_condition.notify_all()

    def _notify_changed(self) -> None:
        with self._changed_condition:
            self._changed_condition.notify_all()
            for listener in self._listeners:
                listener()


def _make_waker(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    return wake
