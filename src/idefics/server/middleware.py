"""The outermost layer of the app: access checks, size limits, client disconnects, request ids and the access log."""

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
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics.batch.openai_batch import MAX_FILE_BYTES
from idefics.server import request_ids
from idefics.server.errors import APIError, to_api_error
from idefics.server.origins import OriginPolicy
from idefics.server.request_context import RequestContext
from idefics.server.server_state import ServerState

MAX_HEADERS = 100
BODY_TIMEOUT = 60.0  # seconds for a whole request body to arrive
UPLOAD_PATH, UPLOAD_TIMEOUT = "/v1/files", 600.0  # files of batches arrive there; seconds for a whole one
MAX_UPLOAD_BYTES = MAX_FILE_BYTES + (1 << 16)  # with the other fields of the form
CLIENT_READ_TIMEOUT = 60.0  # seconds for a client to read one piece of a response
CLIENT_CLOSED_REQUEST = 499  # status in the access log, as nginx has it
CONTEXT_SCOPE_KEY = "idefics.request_context"
# In the scope of a request that this process itself makes, for a line of a batch; a server never sets it.
IN_PROCESS_SCOPE_KEY = "idefics.in_process"
# A slash at the end makes no difference, except on the page: a folder is no file.
TRAILING_SLASH_PATTERN = re.compile(r"(/v1/.+|/health|/ready|/metrics|/docs|/openapi\.json)/+")

log = logging.getLogger("idefics.server.access")


class AccessMiddleware:
    """ASGI middleware around all routes, the page's among them.

    Args:
        keys: the API keys; empty: no key is required.
    """

    def __init__(self, app: ASGIApp, service: ServerState, keys: Sequence[bytes]) -> None:
        self.app, self.service = app, service
        self.origin_policy = OriginPolicy(service.settings)
        self.key_digests = [hashlib.sha256(key).digest() for key in keys]
        self.max_body_bytes = service.settings.body_megabytes << 20
        self.has_uploads = service.settings.batches is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:  # a request; `DrainingServer` has no websockets
            path: str = scope["path"]
            if TRAILING_SLASH_PATTERN.fullmatch(path):
                scope = {**scope, "path": path.rstrip("/")}
            await RequestHandler(self, scope, receive, send).handle()

    def check_headers(self, path: str, headers: Headers) -> None:
        """Checks all that can be checked before the body arrives.

        Raises:
            APIError: 401 key, 403 origin, 413 size, 415 encoding, 421 host, 431 number of headers.
        """
        if len(headers) > MAX_HEADERS:
            raise APIError(431, f"the request has {len(headers)} headers; the limit is {MAX_HEADERS}")
        if path == "/health":
            return
        self.origin_policy.check_host_and_origin(headers)
        self._check_key(headers)
        if is_api_path(path):
            encoding = headers.get("content-encoding", "").lower()
            if encoding not in ("", "identity"):
                raise APIError(
                    415, f"Content-Encoding {encoding[:20]!r} is not supported: send the body uncompressed"
                )
            content_length = headers.get("content-length", "")
            if content_length.isdecimal():
                self.check_body_size(path, int(content_length[:20]))

    def is_upload(self, path: str) -> bool:
        """Whether the body of a request is a file, which is written to the disk as it arrives."""
        return self.has_uploads and path == UPLOAD_PATH

    def check_body_size(self, path: str, num_bytes: int) -> None:
        """Raises an `APIError` (413) if a body is too large, as its header says or as it has arrived so far."""
        is_upload = self.is_upload(path)
        max_bytes = MAX_UPLOAD_BYTES if is_upload else self.max_body_bytes
        if num_bytes > max_bytes:
            hint = "split the file" if is_upload else "send fewer or smaller pictures"
            raise APIError(413, f"the request is larger than {max_bytes:,} bytes: {hint}")

    def _check_key(self, headers: Headers) -> None:
        """Raises an `APIError` (401) if the server has keys and the request has none of them."""
        if not self.key_digests:
            return
        digest = _key_digest(headers)
        # Compares with all keys, so that the time taken reveals nothing about them.
        if sum(hmac.compare_digest(key_digest, digest) for key_digest in self.key_digests):
            return
        scheme, hint = "Bearer", "send it as 'Authorization: Bearer KEY'"
        if "text/html" in headers.get("accept", ""):  # from a browser, which then asks for a password
            scheme = 'Basic realm="idefics: any user name, and the API key as the password"'
            hint = "reload the page and enter it as the password, with any user name"
        raise APIError(
            401,
            f"the API key is missing or wrong: {hint}",
            code="invalid_api_key",
            headers={"WWW-Authenticate": scheme},
        )


class RequestHandler:
    """Handles one request: checks it, runs the app, sends the response and logs it."""

    def __init__(self, middleware: AccessMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.middleware, self.scope, self._receive, self._send = middleware, scope, receive, send
        self.headers = Headers(scope=scope)
        self.start_time = time.monotonic()
        self.is_upload, self.num_body_bytes = middleware.is_upload(scope["path"]), 0
        self.body_timeout = UPLOAD_TIMEOUT if self.is_upload else BODY_TIMEOUT
        self.body_deadline = asyncio.get_running_loop().time() + self.body_timeout
        self.body_received, self.client_disconnected = asyncio.Event(), asyncio.Event()
        self.status = 0  # of the response, once it has begun
        self.is_response_complete = False
        self.request_id = request_ids.request_id_from_headers(self.headers)
        self.response_headers = [
            (request_ids.REQUEST_ID_HEADER.encode(), self.request_id.encode()),
            *middleware.origin_policy.response_headers(self.headers),
        ]

    async def handle(self) -> None:
        """Answers the request, with an error if need be, and logs it."""
        request_ids.current_request_id.set(self.request_id)
        try:
            preflight_headers = self.middleware.origin_policy.preflight_headers(
                self.scope["method"], self.headers
            )
            if preflight_headers is not None:
                await Response(None, 204, preflight_headers)(self.scope, self._receive, self.send)
                return
            await self._check_headers_and_run_app()
        except Exception as error:
            api_error = to_api_error(error)
            if self.status:
                # The response has begun: closing the connection is the only way to signal that it is incomplete.
                raise ConnectionAbortedError from None
            is_for_people = api_error.status_code == 401 and "text/html" in self.headers.get("accept", "")
            response = api_error.to_page() if is_for_people else api_error.to_response()
            await response(self.scope, self._receive, self.send)
        finally:
            self._count_and_log_request()

    async def _check_headers_and_run_app(self) -> None:
        """Checks the headers and runs the app. POST requests of the API get a `RequestContext`."""
        path, is_in_process = self.scope["path"], IN_PROCESS_SCOPE_KEY in self.scope
        if not is_in_process:
            self.middleware.check_headers(path, self.headers)
        if self.scope["method"] != "POST" or not is_api_path(path):
            await self.middleware.app(self.scope, self._receive, self.send)
            return
        context = RequestContext(self.middleware.service, is_background=is_in_process)
        self.scope[CONTEXT_SCOPE_KEY] = context
        try:
            await self._run_app_until_disconnect()
        finally:
            context.close()

    async def _run_app_until_disconnect(self) -> None:
        """Runs the app, and cancels it when the client disconnects."""
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
        """Waits until the client disconnects, and then cancels the app unless its response is complete."""
        await self.body_received.wait()
        while not self.client_disconnected.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.client_disconnected.set()
        if not self.is_response_complete:
            app_task.cancel()

    async def receive(self) -> Message:
        """The next message for the app: a part of the body, and after it the disconnect of the client.

        Raises:
            APIError: 408, the body takes too long; 413, it is too large; 429, all bodies together are too large.
        """
        if self.body_received.is_set():
            await self.client_disconnected.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self.body_deadline):
                message = await self._receive()
        except TimeoutError:
            raise APIError(408, f"the request took longer than {self.body_timeout:g} s to arrive") from None
        num_bytes = len(message.get("body", b""))
        self.num_body_bytes += num_bytes
        if not self.is_upload:
            context: RequestContext = self.scope[CONTEXT_SCOPE_KEY]
            self.middleware.service.admission.reserve(context.slot, bytes=num_bytes)
        self.middleware.check_body_size(self.scope["path"], self.num_body_bytes)
        if message["type"] == "http.disconnect":
            self.client_disconnected.set()
        if self.client_disconnected.is_set() or not message.get("more_body", False):
            self.body_received.set()
        return message

    async def send(self, message: Message) -> None:
        """Sends a message of the app to the client.

        Raises:
            CancelledError: the client did not read it within `CLIENT_READ_TIMEOUT`, and counts as disconnected.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.response_headers]
        elif not message.get("more_body", False):
            self.is_response_complete = True
        try:
            async with asyncio.timeout(CLIENT_READ_TIMEOUT):
                await self._send(message)
        except TimeoutError:
            self.client_disconnected.set()
            raise asyncio.CancelledError from None

    def _count_and_log_request(self) -> None:
        """Counts the request in the metrics and writes a line to the access log."""
        route = self.scope.get("route")
        path = (
            route.path if route is not None else "(no route)"
        )  # not the client's path, which could forge log lines
        self.middleware.service.metrics.requests.labels(path, str(self.status)).inc()
        client, milliseconds = self.scope.get("client"), 1000 * (time.monotonic() - self.start_time)
        host = client[0] if client else "-"
        method, status = self.scope["method"], self.status or "-"
        log.info("%s %s %s %s %.0f ms %s", host, method, path, status, milliseconds, self.request_id)


def is_api_path(path: str) -> bool:
    """Whether a path belongs to the API, and not to the page or to monitoring."""
    return path.startswith("/v1/")


def api_key_id(headers: Headers) -> str:
    """Identifies the API key of a request: SHA-256, shortened to 32 hexadecimal digits."""
    return _key_digest(headers).hex()[:32]


def _key_digest(headers: Headers) -> bytes:
    """SHA-256 of a request's key: a bearer token, or the password of a browser; empty if there is none."""
    scheme, _, credentials = headers.get("authorization", "").encode("latin-1").partition(b" ")
    key = b""
    if scheme.lower() == b"bearer":
        key = credentials.strip()
    elif scheme.lower() == b"basic":
        with suppress(binascii.Error):
            key = base64.b64decode(credentials, validate=True).partition(b":")[2]
    return hashlib.sha256(key).digest()
