"""`RequestHandle`: the caller's view of a submitted request, for threads and for asyncio. No torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from idefics.engine.request import Request
from idefics.messages import Alternative, FinishReason, Usage

if TYPE_CHECKING:
    from idefics.engine.request_state import SampledToken


class RequestHandle:
    """The state and result of one request. The engine's thread writes it; any thread may read, wait for or cancel it.

    Iterating with `for` or `async for` yields ids as they are generated; `result` and `await` return the handle once it
    is done. Leaving such a loop or wait early, by an error or a cancelled task, cancels the request.

    Attributes:
        request: the submitted request.
        ids: the ids generated so far, without stop ids.
        logprobs: natural-log probability of each of `ids` if `sampling.logprobs` is set; else empty.
        top_logprobs: the most likely tokens at the position of each of `ids`; empty if `sampling.top_logprobs` is 0.
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
        self._done_event = threading.Event()
        self._listeners: list[Callable[[], None]] = []  # called after each change
        self._done_callbacks: list[Callable[[], None]] = []
        self._listeners_lock = threading.Lock()

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
        """One line for the log: the request's token counts and how it ended, without texts or ids."""
        usage, outcome = self.usage, self.finish_reason or type(self.error).__name__
        return (
            f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached, "
            f"{usage.pictures} pictures, {usage.completion_tokens} completion tokens, {outcome}"
        )

    def cancel(self) -> None:
        """Ends the request, whether it waits or runs, with the ids generated so far; no effect once it is done."""
        self._cancel_request(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the request is done, at most `timeout` seconds; returns whether it is done. Ctrl-C cancels it."""
        try:
            return self._done_event.wait(timeout)
        except BaseException:
            self.cancel()
            raise

    def result(self) -> RequestHandle:
        """Waits until the request is done; returns this handle, or raises the error with which the request failed."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self

    def call_when_done(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, when the request is done: in the thread that ends it, or here if it is done already.

        The callback must be short, since the engine waits for it, and must not raise.
        """
        with self._listeners_lock:
            if not self._done_event.is_set():
                self._done_callbacks.append(callback)
                return
        callback()

    def __iter__(self) -> Iterator[int]:
        changed, num_yielded, is_done = threading.Event(), 0, False
        with self._call_after_changes(changed.set):
            while not is_done:
                changed.clear()
                # `is_done` first: an id that is added in between sets `changed` again.
                is_done, new_ids = self.is_done, self.ids[num_yielded:]
                yield from new_ids
                num_yielded += len(new_ids)
                if not new_ids and not is_done:
                    changed.wait()

    def __await__(self) -> Generator[Any, None, RequestHandle]:
        async def wait_until_done() -> RequestHandle:
            async for _ in self:
                pass
            return self

        return wait_until_done().__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        loop, changed, num_yielded, is_done = asyncio.get_running_loop(), asyncio.Event(), 0, False

        def set_changed() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        with self._call_after_changes(set_changed):
            while not is_done:
                changed.clear()
                is_done, new_ids = self.is_done, self.ids[num_yielded:]
                for id in new_ids:
                    yield id
                num_yielded += len(new_ids)
                if not new_ids and not is_done:
                    await changed.wait()

    @contextmanager
    def _call_after_changes(self, listener: Callable[[], None]) -> Iterator[None]:
        """Context of a loop over the ids: calls `listener` after each change.

        At its end it cancels the request if that is not done, and raises the request's error if there is one.
        """
        with self._listeners_lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            self.cancel()
            with self._listeners_lock:
                self._listeners.remove(listener)
        if self.error is not None:
            raise self.error

    def append_token(self, token: SampledToken) -> None:
        """Appends a generated id and wakes readers. Only the engine calls it."""
        if token.logprob is not None:  # before the id: a reader that sees the id may read its log-probability
            self.logprobs.append(token.logprob)
        if token.top_logprobs:
            self.top_logprobs.append(token.top_logprobs)
        self.ids.append(token.id)
        self._notify_changed()

    def finish(self, reason: FinishReason) -> None:
        """Marks the request as done with a finish reason and wakes readers; no effect if it is done already."""
        if not self.is_done:
            self.finish_reason = reason
            self._notify_done()

    def fail(self, error: Exception) -> None:
        """Marks the request as failed with an error and wakes readers; no effect if it is done already."""
        if not self.is_done:
            self.error = error
            self._notify_done()

    def fail_after_fork(self, error: Exception) -> None:
        """Fails the request in a forked process, with new locks: a thread of the parent may hold the old ones."""
        self._listeners_lock, self._done_event = threading.Lock(), threading.Event()
        if not self.is_done:
            self.error = error
        self._done_event.set()

    def _notify_done(self) -> None:
        """Wakes all readers, and the callers of `wait` and `result`; calls the callbacks of `call_when_done`."""
        self._notify_changed()
        with self._listeners_lock:
            self._done_event.set()
            callbacks, self._done_callbacks = self._done_callbacks, []
        for callback in callbacks:
            callback()

    def _notify_changed(self) -> None:
        """Wakes the loops over new ids, in threads and in asyncio."""
        with self._listeners_lock:
            for listener in self._listeners:
                listener()
