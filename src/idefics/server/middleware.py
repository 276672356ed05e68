"""What every request passes before a route sees it: the key, the limits of its size, the room; and the access log.

A client that goes away ends its request here, whatever the request is waiting for.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics.server import request_ids
from idefics.server.cors import CORSPolicy
from idefics.server.errors import APIError, to_api_error
from idefics.server.hosts import HostCheck
from idefics.server.request_context import RequestContext, ServerState

MAX_HEADERS = 100
BODY_TIMEOUT = 60.0  # that a request may take to arrive
CLIENT_READ_TIMEOUT = 60.0  # that a client may take to read a piece of its answer
CLIENT_CLOSED_REQUEST = 499  # what the access log says of a client that left, as nginx does
CONTEXT_SCOPE_KEY = "idefics.visit"  # in a request's scope
# A slash at the end makes no difference, but to the page, whose paths are Gradio's.
TRAILING_SLASH_PATTERN = re.compile(r"(/v1/.+|/health|/ready|/metrics|/docs|/openapi\.json)/+")

log = logging.getLogger("idefics.server.access")


class AccessMiddleware:
    """The outermost part of the app."""

    def __init__(self, app: ASGIApp, service: ServerState, keys: Sequence[bytes]) -> None:
        self.app, self.service = app, service
        self.cross_origin = CORSPolicy(service.settings)
        self.host_check = HostCheck(service.settings, self.cross_origin)
        self.key_digests = [hashlib.sha256(key).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks so
        else:
            path: str = scope["path"]
            if TRAILING_SLASH_PATTERN.fullmatch(path):
                scope = {**scope, "path": path.rstrip("/")}
            await RequestHandler(self, scope, receive, send).handle()

    def check_headers(self, scope: Scope) -> None:
        """Raises the Fault of a request whose headers say that it must not come in."""
        headers = scope["headers"]
        if len(headers) > MAX_HEADERS:
            raise APIError(431, f"the request has {len(headers)} headers; at most {MAX_HEADERS} are read")
        if scope["path"] == "/health":
            return
        self.host_check.check(scope)
        if self.key_digests and not self._has_valid_key(scope):
            wants_page = b"text/html" in _get_header(scope, b"accept")
            scheme, hint = 'Basic realm="idefics"', "reload the page and give it as password, beside any name"
            if not wants_page:
                scheme, hint = "Bearer", "send it as 'Authorization: Bearer KEY'"
            raise APIError(
                401,
                f"the API key is missing or wrong: {hint}",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )
        content_encoding = _get_header(scope, b"content-encoding").lower()
        if is_api_request(scope) and content_encoding not in (b"", b"identity"):
            raise APIError(
                415, f"the body is packed ({content_encoding[:20].decode('latin-1')!r}): send it as it is"
            )
        content_length = _get_header(scope, b"content-length")
        if (
            is_api_request(scope)
            and content_length.isdigit()
            and int(content_length[:20]) > self.max_body_bytes
        ):
            raise self.body_too_large_error()

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a body."""
        return self.service.settings.body_megabytes << 20

    def body_too_large_error(self) -> APIError:
        """What is said of a larger body."""
        return APIError(
            413, f"the request is larger than {self.max_body_bytes:,} bytes: send fewer or smaller pictures"
        )

    def _has_valid_key(self, scope: Scope) -> bool:
        """Whether the request brings a key. How long it takes tells nothing of the keys."""
        key_digest = hashlib.sha256(_extract_key(_get_header(scope, b"authorization"))).digest()
        return (
            sum(hmac.compare_digest(key, key_digest) for key in self.key_digests) > 0
        )  # all of them, always


class RequestHandler:
    """One request on its way through the gate."""

    def __init__(self, middleware: AccessMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.middleware, self.scope, self._receive, self._send = middleware, scope, receive, send
        self.status = 0  # of the answer, once it has begun
        self.is_response_complete = False
        self.body_deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT
        self.body_received, self.client_disconnected = asyncio.Event(), asyncio.Event()
        self.start_time = time.monotonic()
        self.request_id = request_ids.request_id_from_headers(scope)
        self.response_headers = [
            (request_ids.REQUEST_ID_HEADER, self.request_id.encode()),
            *middleware.cross_origin.response_headers(scope),
        ]

    async def handle(self) -> None:
        """Answers the request, and writes a line about it."""
        request_ids.current_request_id.set(self.request_id)
        try:
            preflight_headers = self.middleware.cross_origin.preflight_headers(self.scope)
            if preflight_headers is not None:
                await self.send({"type": "http.response.start", "status": 204, "headers": preflight_headers})
                await self.send({"type": "http.response.body"})
                return
            await self._run_app()
        except Exception as error:
            if (
                self.status
            ):  # its beginning is with the client: only the connection can say that the rest is missing
                to_api_error(error)
                raise ConnectionAbortedError from None
            await to_api_error(error).to_response()(self.scope, self._receive, self.send)
        finally:
            self._log_request()

    async def _run_app(self) -> None:
        self.middleware.check_headers(self.scope)
        if self.scope["method"] != "POST" or not is_api_request(
            self.scope
        ):  # the page counts what it is sent itself
            await self.middleware.app(self.scope, self._receive, self.send)
            return
        context = RequestContext(self.middleware.service)
        self.scope[CONTEXT_SCOPE_KEY] = context
        try:
            await self._run_app_until_disconnect()
        finally:
            context.close()

    async def _run_app_until_disconnect(self) -> None:
        """Lets the app answer, and stops it when the client leaves."""
        app_task = asyncio.ensure_future(self.middleware.app(self.scope, self.receive, self.send))
        disconnect_task = asyncio.create_task(self._cancel_on_disconnect(app_task))
        try:
            await app_task
        except asyncio.CancelledError:
            if not self.client_disconnected.is_set():
                raise
            self.status = self.status or CLIENT_CLOSED_REQUEST
            self.middleware.service.metrics.disconnected_clients.inc()
        finally:
            disconnect_task.cancel()

    async def _cancel_on_disconnect(self, app_task: asyncio.Future[None]) -> None:
        await self.body_received.wait()
        while not self.client_disconnected.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.client_disconnected.set()
        if not self.is_response_complete:
            app_task.cancel()

    async def receive(self) -> Message:
        """What the app reads: the body, up to its limits; then, some day, that the client is gone."""
        if self.body_received.is_set():
            await self.client_disconnected.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self.body_deadline):
                message = await self._receive()
        except TimeoutError:
            raise APIError(408, f"the request took longer than {BODY_TIMEOUT:g} s to arrive") from None
        context: RequestContext = self.scope[CONTEXT_SCOPE_KEY]
        self.middleware.service.admission.reserve(context.slot, bytes=len(message.get("body", b"")))
        if context.slot.num_bytes > self.middleware.max_body_bytes:
            raise self.middleware.body_too_large_error()
        if message["type"] == "http.disconnect":
            self.client_disconnected.set()
        if self.client_disconnected.is_set() or not message.get("more_body", False):
            self.body_received.set()
        return message

    async def send(self, message: Message) -> None:
        """What the app says."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.response_headers]
        elif not message.get("more_body", False):
            self.is_response_complete = True
        try:
            async with asyncio.timeout(CLIENT_READ_TIMEOUT):
                await self._send(message)
        except TimeoutError:
            self.client_disconnected.set()  # as good as: its answers end, and it makes room
            raise asyncio.CancelledError from None

    def _log_request(self) -> None:
        route = self.scope.get("route")
        path = route.path if route is not None else "(no route)"  # as it was declared: a client writes no log
        self.middleware.service.metrics.requests.labels(path, str(self.status)).inc()
        client, milliseconds = self.scope.get("client"), 1000 * (time.monotonic() - self.start_time)
        host = client[0] if client else "-"
        method, status = self.scope["method"], self.status or "-"
        log.info("%s %s %s %s %.0f ms %s", host, method, path, status, milliseconds, self.request_id)


def is_api_request(scope: Scope) -> bool:
    """Whether a request is of OpenAI's API, and not of the page."""
    path: str = scope["path"]
    return path.startswith("/v1/")


def _get_header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _extract_key(authorization: bytes) -> bytes:
    """The key that a header brings: as bearer token, or as a browser's password."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
