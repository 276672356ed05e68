"""Middleware around Gradio: passes on the requests that the page makes, and refuses all others.

Gradio would fetch addresses and read files that a request names. Addresses are fetched by the page's own code, under
its policy, and only uploaded files and the bundled pictures may be read.
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

API_PREFIX = "/gradio_api"
READABLE_PATHS = re.compile(
    r"/|/(assets|static|svelte)/.*|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?"
    rf"|{API_PREFIX}/(info|startup-events|theme\.css|app_id|upload_progress|queue/data|heartbeat/[\w-]+)/?"
    rf"|{API_PREFIX}/file=(?!\w+:|//).*"  # a path, not an address
)
POSTABLE_PATHS = re.compile(rf"{API_PREFIX}/(queue/join|run/predict|upload|cancel|reset)/?")
MAX_BODY_BYTES = 16 * 2**20  # of a request other than an upload, whose size Gradio limits
MAX_JSON_VALUES = 200_000  # in the JSON of a request; a large table has a tenth of them
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class RequestFilter:
    """ASGI middleware: refuses unknown paths, large bodies and files that were not uploaded; sets security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on, or answers it with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        is_read = scope["method"] in ("GET", "HEAD") and READABLE_PATHS.fullmatch(path) is not None
        if not is_read and not (scope["method"] == "POST" and POSTABLE_PATHS.fullmatch(path)):
            await send_error(send, 404, "no such page")
            return

        async def send_with_security_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        if is_read or path.startswith(f"{API_PREFIX}/upload"):
            await self.app(scope, receive, send_with_security_headers)
            return
        body = await read_body(receive)
        if body is None:
            await send_error(send, 413, f"a request has at most {MAX_BODY_BYTES:,} bytes")
        elif not is_safe_request(body):
            await send_error(send, 400, "a file in the request was never uploaded")
        else:
            await self.app(scope, _replay_body(body, receive), send_with_security_headers)


async def read_body(receive: Receive) -> bytes | None:
    """Reads the body of a request; None if it has more than `MAX_BODY_BYTES` bytes."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body which was read already, and then further messages."""
    bodies = [body]

    async def next_message() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return next_message


def is_safe_request(body: bytes) -> bool:
    """Whether the JSON is small enough, and each file that it names was uploaded or is a bundled picture."""
    if has_more_values(body, MAX_JSON_VALUES):
        return False
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    folders = [Path(get_upload_folder()).resolve(), bundled()[0].parent.resolve()]
    for obj in _iterate_objects(data):
        path = obj.get("path")
        if path is not None and not (isinstance(path, str) and _is_in_folders(path, folders)):
            return False
        url = str(obj.get("url") or "").lower()
        if url.startswith("data:"):  # Gradio would decode it without this package's limits
            return False
    return True


def _is_in_folders(path: str, folders: list[Path]) -> bool:
    """Whether a path is absolute and, with symbolic links resolved, in one of the folders."""
    try:
        resolved = Path(path).resolve()
    except (OSError, ValueError):
        return False
    return Path(path).is_absolute() and any(resolved.is_relative_to(folder) for folder in folders)


def _iterate_objects(data: Any) -> Iterator[dict[str, Any]]:
    """Yields all objects in parsed JSON, at any depth."""
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


async def send_error(send: Send, status: int, text: str) -> None:
    """Sends a response with a status and a line of plain text."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *SECURITY_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
