"""Server-sent events: an answer in pieces, while it grows."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from idefics.server.errors import APIError, to_api_error

DONE_EVENT = b"data: [DONE]\n\n"
# For the API's description: an answer is JSON, or comes in pieces.
EVENT_STREAM_CONTENT = {
    "text/event-stream": {"schema": {"description": "Events whose data are JSON; see docs/server.md."}}
}


def format_event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event."""
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\ndata: {payload}\n\n" if name else f"data: {payload}\n\n").encode()


class EventStreamResponse(Response):
    """A stream of events. An error in the midst of them is the last one, as `format_error` words it."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], format_error: Callable[[APIError], bytes] | None = None
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.format_error = events, format_error or _format_error_event

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


def _format_error_event(error: APIError) -> bytes:
    return format_event(error.error_body)
