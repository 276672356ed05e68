"""Server-sent events: an answer in pieces, while it grows."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from idefics.server.faults import Fault, fault_of

DONE = b"data: [DONE]\n\n"
# For the API's description: an answer is JSON, or comes in pieces.
PIECES = {"text/event-stream": {"schema": {"description": "Events whose data are JSON; see docs/server.md."}}}


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event."""
    line = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\ndata: {line}\n\n" if name else f"data: {line}\n\n").encode()


class Events(Response):
    """A stream of events. An error in the midst of them is the last one, as `last` words it."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], last: Callable[[Fault], bytes] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.last = events, last or _plainly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self.events) as events:
                async for one in events:
                    await send({"type": "http.response.body", "body": one, "more_body": True})
        except Exception as error:
            last = self.last(fault_of(error))
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _plainly(fault: Fault) -> bytes:
    return event(fault.body)
