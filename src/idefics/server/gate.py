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
from idefics.server.cors import CrossOrigin
from idefics.server.faults import Fault, fault_of
from idefics.server.names import Names
from idefics.server.visit import Service, Visit

MOST_HEADERS = 100
BODY_SECONDS = 60.0  # that a request may take to arrive
READ_SECONDS = 60.0  # that a client may take to read a piece of its answer
GONE = 499  # what the access log says of a client that left, as nginx does
VISIT = "idefics.visit"  # in a request's scope
# A slash at the end makes no difference, but to the page, whose paths are Gradio's.
SLASHED = re.compile(r"(/v1/.+|/health|/ready|/metrics|/docs|/openapi\.json)/+")

log = logging.getLogger("idefics.server.access")


class Gate:
    """The outermost part of the app."""

    def __init__(self, app: ASGIApp, service: Service, keys: Sequence[bytes]) -> None:
        self.app, self.service = app, service
        self.cross_origin = CrossOrigin(service.settings)
        self.names = Names(service.settings, self.cross_origin)
        self.keys = [hashlib.sha256(key).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks so
        else:
            path: str = scope["path"]
            if SLASHED.fullmatch(path):
                scope = {**scope, "path": path.rstrip("/")}
            await Passage(self, scope, receive, send).run()

    def check(self, scope: Scope) -> None:
        """Raises the Fault of a request whose headers say that it must not come in."""
        headers = scope["headers"]
        if len(headers) > MOST_HEADERS:
            raise Fault(431, f"the request has {len(headers)} headers; at most {MOST_HEADERS} are read")
        if scope["path"] == "/health":
            return
        self.names.check(scope)
        if self.keys and not self._knows(scope):
            wants_page = b"text/html" in _header(scope, b"accept")
            scheme, way = 'Basic realm="idefics"', "reload the page and give it as password, beside any name"
            if not wants_page:
                scheme, way = "Bearer", "send it as 'Authorization: Bearer KEY'"
            raise Fault(
                401,
                f"the API key is missing or wrong: {way}",
                code="invalid_api_key",
                headers={"WWW-Authenticate": scheme},
            )
        packed = _header(scope, b"content-encoding").lower()
        if is_api(scope) and packed not in (b"", b"identity"):
            raise Fault(415, f"the body is packed ({packed[:20].decode('latin-1')!r}): send it as it is")
        length = _header(scope, b"content-length")
        if is_api(scope) and length.isdigit() and int(length[:20]) > self.most:
            raise self.too_large()

    @property
    def most(self) -> int:
        """Bytes of a body."""
        return self.service.settings.body_megabytes << 20

    def too_large(self) -> Fault:
        """What is said of a larger body."""
        return Fault(413, f"the request is larger than {self.most:,} bytes: send fewer or smaller pictures")

    def _knows(self, scope: Scope) -> bool:
        """Whether the request brings a key. How long it takes tells nothing of the keys."""
        given = hashlib.sha256(_key(_header(scope, b"authorization"))).digest()
        return sum(hmac.compare_digest(key, given) for key in self.keys) > 0  # all of them, always


class Passage:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.scope, self._receive, self._send = gate, scope, receive, send
        self.status = 0  # of the answer, once it has begun
        self.is_answered = False
        self.latest = asyncio.get_running_loop().time() + BODY_SECONDS
        self.has_arrived, self.is_gone = asyncio.Event(), asyncio.Event()
        self.began = time.monotonic()
        self.id = request_ids.request_id(scope)
        self.headers = [(request_ids.HEADER, self.id.encode()), *gate.cross_origin.headers(scope)]

    async def run(self) -> None:
        """Answers the request, and writes a line about it."""
        request_ids.current.set(self.id)
        try:
            told = self.gate.cross_origin.preflight(self.scope)
            if told is not None:
                await self.send({"type": "http.response.start", "status": 204, "headers": told})
                await self.send({"type": "http.response.body"})
                return
            await self._answer()
        except Exception as error:
            if (
                self.status
            ):  # its beginning is with the client: only the connection can say that the rest is missing
                fault_of(error)
                raise ConnectionAbortedError from None
            await fault_of(error).response()(self.scope, self._receive, self.send)
        finally:
            self._tell()

    async def _answer(self) -> None:
        self.gate.check(self.scope)
        if self.scope["method"] != "POST" or not is_api(self.scope):  # the page counts what it is sent itself
            await self.gate.app(self.scope, self._receive, self.send)
            return
        visit = Visit(self.gate.service)
        self.scope[VISIT] = visit
        try:
            await self._watched()
        finally:
            visit.leave()

    async def _watched(self) -> None:
        """Lets the app answer, and stops it when the client leaves."""
        work = asyncio.ensure_future(self.gate.app(self.scope, self.receive, self.send))
        watch = asyncio.create_task(self._watch(work))
        try:
            await work
        except asyncio.CancelledError:
            if not self.is_gone.is_set():
                raise
            self.status = self.status or GONE
            self.gate.service.metrics.gone.inc()
        finally:
            watch.cancel()

    async def _watch(self, work: asyncio.Future[None]) -> None:
        await self.has_arrived.wait()
        while not self.is_gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.is_gone.set()
        if not self.is_answered:
            work.cancel()

    async def receive(self) -> Message:
        """What the app reads: the body, up to its limits; then, some day, that the client is gone."""
        if self.has_arrived.is_set():
            await self.is_gone.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self.latest):
                message = await self._receive()
        except TimeoutError:
            raise Fault(408, f"the request took longer than {BODY_SECONDS:g} s to arrive") from None
        visit: Visit = self.scope[VISIT]
        self.gate.service.admission.take(visit.place, bytes=len(message.get("body", b"")))
        if visit.place.bytes > self.gate.most:
            raise self.gate.too_large()
        if message["type"] == "http.disconnect":
            self.is_gone.set()
        if self.is_gone.is_set() or not message.get("more_body", False):
            self.has_arrived.set()
        return message

    async def send(self, message: Message) -> None:
        """What the app says."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self.headers]
        elif not message.get("more_body", False):
            self.is_answered = True
        try:
            async with asyncio.timeout(READ_SECONDS):
                await self._send(message)
        except TimeoutError:
            self.is_gone.set()  # as good as: its answers end, and it makes room
            raise asyncio.CancelledError from None

    def _tell(self) -> None:
        route = self.scope.get("route")
        path = route.path if route is not None else "(no route)"  # as it was declared: a client writes no log
        self.gate.service.metrics.requests.labels(path, str(self.status)).inc()
        client, milliseconds = self.scope.get("client"), 1000 * (time.monotonic() - self.began)
        host = client[0] if client else "-"
        method, status = self.scope["method"], self.status or "-"
        log.info("%s %s %s %s %.0f ms %s", host, method, path, status, milliseconds, self.id)


def is_api(scope: Scope) -> bool:
    """Whether a request is of OpenAI's API, and not of the page."""
    path: str = scope["path"]
    return path.startswith("/v1/")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _key(authorization: bytes) -> bytes:
    """The key that a header brings: as bearer token, or as a browser's password."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
