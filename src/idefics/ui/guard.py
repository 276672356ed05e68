"""Stands before Gradio: lets through what the page needs, and no path or address that a browser makes up.

Gradio fetches addresses and reads files that stand in the data of a request. What may be fetched is the policy's to
say, and what may be read is what somebody has uploaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradio.utils import get_upload_folder

from idefics.demo import pictures as bundled
from idefics.processing.json_values import has_more_values

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
READS = re.compile(
    r"/|/(assets|static|svelte)/.*|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    rf"|{API}/(info|startup-events|theme\.css|app_id|upload_progress|queue/data|heartbeat/[\w-]+)/?"
    rf"|{API}/file=(?!\w+:|//).*"  # a path, and no address
)
SENDS = re.compile(rf"{API}/(queue/join|run/predict|upload|cancel|reset)/?")
MOST_BODY = 16 * 2**20  # bytes of a request but for uploads, which Gradio counts itself
MOST_VALUES = 200_000  # of JSON in one: a large table has a tenth of them
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """An ASGI application around Gradio's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        is_read = scope["method"] in ("GET", "HEAD") and READS.fullmatch(path) is not None
        if not is_read and not (scope["method"] == "POST" and SENDS.fullmatch(path)):
            await refuse(send, 404, "there is nothing here")
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        if is_read or path.startswith(f"{API}/upload"):
            await self.app(scope, receive, send_guarded)
            return
        body = await read_all(receive)
        if body is None:
            await refuse(send, 413, f"a request has at most {MOST_BODY:,} bytes")
        elif not is_harmless(body):
            await refuse(send, 400, "a file in the request was never uploaded")
        else:
            await self.app(scope, _again(body, receive), send_guarded)


async def read_all(receive: Receive) -> bytes | None:
    """The body of a request, or None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read already, and then whatever comes."""
    bodies = [body]

    async def next_message() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return next_message


def is_harmless(body: bytes) -> bool:
    """Whether a request is quick to read, and each file in its data was uploaded or is a bundled picture."""
    if has_more_values(body, MOST_VALUES):
        return False
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    folders = [Path(get_upload_folder()).resolve(), bundled()[0].parent.resolve()]
    for found in _objects(data):
        path = found.get("path")
        if path is not None and not (isinstance(path, str) and _is_in(path, folders)):
            return False
        if (
            str(found.get("url") or "").lower().startswith("data:")
        ):  # Gradio would decode it, without our limits
            return False
    return True


def _is_in(path: str, folders: list[Path]) -> bool:
    try:
        resolved = Path(path).resolve()
    except (OSError, ValueError):
        return False
    return Path(path).is_absolute() and any(resolved.is_relative_to(folder) for folder in folders)


def _objects(data: Any) -> Iterator[dict[str, Any]]:
    """All objects in some JSON."""
    waiting = [data]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


async def refuse(send: Send, status: int, text: str) -> None:
    """A line of text instead of an answer."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
