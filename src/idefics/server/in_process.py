"""Requests that the process itself sends to its app, without a network: the lines of batches."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from idefics.server import request_ids
from idefics.server.middleware import IN_PROCESS_SCOPE_KEY

CLIENT_NAME = "batch"  # in the access log, in the place of the client's address


@dataclass(frozen=True, slots=True)
class InProcessResponse:
    """The response of the app.

    Attributes:
        status: HTTP status.
        request_id: its `x-request-id`.
        body: the JSON object.
        retry_after: seconds after which the same request may succeed; 0 if the response has none.
    """

    status: int
    request_id: str
    body: Any
    retry_after: int


async def post_in_process(app: ASGIApp, path: str, body: bytes) -> InProcessResponse:
    """Sends a POST request to the app: the response is that of a live request, and needs no key.

    Admission control treats it as a background request. Cancelling the task that waits ends the request.

    Args:
        path: of a route that answers with JSON.
        body: JSON.
    """
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    content, head = bytearray(), dict[str, Any]()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        never: Message = await asyncio.get_running_loop().create_future()  # the client does not disconnect
        return never

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            content.extend(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": (CLIENT_NAME, 0),
        IN_PROCESS_SCOPE_KEY: True,
    }
    await app(scope, receive, send)
    response_headers = Headers(raw=head["headers"])
    return InProcessResponse(
        head["status"],
        response_headers[request_ids.REQUEST_ID_HEADER],
        json.loads(content),
        int(response_headers.get("retry-after", 0)),
    )
