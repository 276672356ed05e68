"""`RequestHandle`: the caller's view of a submitted request, for threads and for asyncio. No torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from idefics.engine.request import Request
from idefics.messages import Alternative, FinishReason, Usage


class RequestHandle:
    """The state and result of one request. The engine's thread writes it; any thread may read, wait for or cancel it.

    Iterating with `for` or `async for` yields ids as they are generated; `result` and `await` return the handle once it
    is done. Leaving such a loop or wait early, by an error or a cancelled task, cancels the request.

    Attributes:
        request: the submitted request.
        ids: the ids generated so far, without stop ids.
        logprobs: natural-log probability of each of `ids` if `sampling.logprobs` is set; else empty.
        top_logprobs: the most likely tokens at the position of each of `ids` if `sampling.top_logprobs` is above 0.
        num_cached_tokens: how many tokens of the prompt were in the prefix cache when it first ran; None until then.
        continuation_logprobs: for each continuation the natural-log probability of each token, once done.
        continuation_top_logprobs: the most likely tokens at the position of each of those, as `top_logprobs`.
        finish_reason: why the answer ended; None while it is running or if it failed.
        error: the exception with which it failed, if it did.
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
        self._done_condition = threading.Condition()  # a second one, so that `wait` is not woken for each id
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_done(self) -> bool:
        """Whether the request has finished, failed or been cancelled."""
        return self.finish_reason is not None or self.error is not None

    @property
    def usage(self) -> Usage:
        """Token and picture counts so far; the tokens of scored continuations count as completion."""
        prompt = self.request.prompt
        num_completion_tokens = len(self.ids) + sum(map(len, self.continuation_logprobs))
        return Usage(len(prompt), num_completion_tokens, len(prompt.pictures), self.num_cached_tokens or 0)

    @property
    def log_summary(self) -> str:
        """The request's counts and how it ended, for the log, which never shows content."""
        usage, outcome = self.usage, self.finish_reason or type(self.error).__name__
        return (
            f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached, "
            f"{usage.pictures} pictures, {usage.completion_tokens} completion tokens, {outcome}"
        )

    def cancel(self) -> None:
        """Ends the request, whether it waits or runs, with the ids generated so far; no effect once it is done."""
        self._cancel_request(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is done, or for `timeout` seconds; returns whether it is done. An interrupt cancels it."""
        try:
            with self._done_condition:
                return self._done_condition.wait_for(lambda: self.is_done, timeout)
        except BaseException:
            self.cancel()
            raise

    def result(self) -> RequestHandle:
        """Waits until it is done; returns the handle, or raises its error."""
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
        listener = _make_threadsafe_event_setter(loop, changed)
        with self._changed_condition:
            self._listeners.append(listener)
        num_yielded = 0
        try:
            while True:
                changed.clear()
                is_done = (
                    self.is_done
                )  # read before `ids`: an id that is added in between sets `changed` again
                new = self.ids[num_yielded:]
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
        """Appends a generated id and wakes readers. Only the engine calls this method and the following ones."""
        if logprob is not None:  # before the id: a reader that sees the id may read its log-probability
            self.logprobs.append(logprob)
        if top_logprobs:
            self.top_logprobs.append(top_logprobs)
        self.ids.append(id)
        self._notify_changed()

    def finish(self, reason: FinishReason) -> None:
        """Marks the request as done with a finish reason and wakes readers."""
        self.finish_reason = reason
        self._notify_done()

    def fail(self, error: Exception) -> None:
        """Marks the request as failed with an error and wakes readers."""
        self.error = error
        self._notify_done()

    def fail_after_fork(self, error: Exception) -> None:
        """Fails it in a forked process, with new locks: the old ones may be held by a thread of the parent process."""
        self._changed_condition, self._done_condition = threading.Condition(), threading.Condition()
        if not self.is_done:
            self.error = error

    def _notify_done(self) -> None:
        """Wakes all readers, and the callers of `wait` and `result`."""
        self._notify_changed()
        with self._done_condition:
            self._done_condition.notify_all()

    def _notify_changed(self) -> None:
        """Wakes the loops over new ids, in threads and in asyncio."""
        with self._changed_condition:
            self._changed_condition.notify_all()
            for listener in self._listeners:
                listener()


def _make_threadsafe_event_setter(
    loop: asyncio.AbstractEventLoop, event: asyncio.Event
) -> Callable[[], None]:
    """Returns a function that sets an asyncio event and may be called from any thread."""

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    return wake
