"""Server-sent events: answers that are sent while they are generated."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

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
