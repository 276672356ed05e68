"""Server-sent events: answers that are sent while they are generated, and the progress before their first token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from idefics.engine.request import RequestProgress
from idefics.server.errors import APIError, to_api_error

DONE_EVENT = b"data: [DONE]\n\n"


def format_event(data: Mapping[str, object], name: str | None = None) -> bytes:
    """Formats a server-sent event: its name, if it has one, and its data as JSON on one line."""
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\ndata: {payload}\n\n" if name else f"data: {payload}\n\n").encode()


class EventStreamResponse(Response):
    """A response that sends events as they come. An exception of `events` is sent as the last event.

    Args:
        events: the formatted events.
        format_error: formats the event of an error; by default its data is an `ErrorBody`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], format_error: Callable[[APIError], bytes] | None = None
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.format_error = events, format_error or (lambda error: format_event(error.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self.events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            error_event = self.format_error(to_api_error(error))
            await send({"type": "http.response.body", "body": error_event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class ProgressQueue:
    """The progress of one request. Any thread may report it; the methods that the event loop calls are marked.

    Attributes:
        is_active: whether what is reported is read; else it is dropped.
    """

    def __init__(self) -> None:
        self.is_active = False
        self._loop = asyncio.get_running_loop()
        self._reported: asyncio.Queue[RequestProgress | None] = asyncio.Queue()
        self._prompt_computed = asyncio.Event()
        self._num_opened = self._num_pictures = 0

    def report(self, progress: RequestProgress) -> None:
        """Adds progress, for `run_and_report`; wakes `wait_for_prompt` if the prompt is computed."""
        if self.is_active:
            self._call_in_loop(self._reported.put_nowait, progress)
        if progress.stage == "prompt" and progress.done == progress.total:
            self.end_prompt()

    def expect_pictures(self, num_pictures: int) -> None:
        """Reports that no picture of a prompt is opened yet, if it has some."""
        self._num_opened, self._num_pictures = 0, num_pictures
        if num_pictures:
            self.report(RequestProgress("pictures", 0, num_pictures))

    def report_opened(self) -> None:
        """Reports that one more picture is opened and preprocessed."""
        self._num_opened += 1
        self.report(RequestProgress("pictures", self._num_opened, self._num_pictures))

    def end_prompt(self) -> None:
        """Wakes `wait_for_prompt`: the prompt is computed, or its request has ended."""
        self._call_in_loop(self._prompt_computed.set)

    async def wait_for_prompt(self) -> None:
        """Waits until the prompt is computed or its request has ended. In the event loop."""
        await self._prompt_computed.wait()

    async def run_and_report(self, work: Coroutine[Any, Any, None]) -> AsyncGenerator[RequestProgress]:
        """Runs `work` as a task, and yields what is reported until it ends; then raises its error. In the event loop.

        Closing the generator cancels the task.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._reported.put_nowait(None))
        try:
            while (progress := await self._reported.get()) is not None:
                yield progress
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _call_in_loop(self, function: Any, *arguments: Any) -> None:
        """Calls a function in the event loop, unless that has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


async def stream_with_progress(
    progress: ProgressQueue,
    work: Callable[[], Coroutine[Any, Any, None]],
    fields: Mapping[str, object],
    events: AsyncGenerator[bytes],
) -> AsyncGenerator[bytes]:
    """The formatted events of a stream with progress: that of `work`, then `events`.

    Args:
        progress: that of the request.
        work: the part of the request that comes before the events.
        fields: the other fields of an event with progress.
        events: the formatted events of the same stream without progress.
    """
    async with aclosing(progress.run_and_report(work())) as reported:
        async for one in reported:
            yield format_event({**fields, "progress": one._asdict()})
    async with aclosing(events) as sent:
        async for event in sent:
            yield event
