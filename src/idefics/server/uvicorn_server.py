"""Runs an app with uvicorn: request headers have a timeout, and on shutdown admitted requests are answered first."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import platform
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from idefics.server import request_ids
from idefics.server.errors import APIError
from idefics.server.server_state import ServerState

log = logging.getLogger("idefics.server.access")

HEADERS_TIMEOUT = 60.0  # seconds for the headers of a request to arrive
MAX_READ_BYTES = 32 << 10  # read from one socket per turn of the event loop; asyncio's default is 256 KiB
MAX_HEADER_BYTES = 32 << 10  # all headers of a request together
ERROR_DELIVERY_SECONDS = 5  # after the drain time, for clients to read the errors that end their answers
LISTEN_BACKLOG = 2048
# Arguments of glibc's mallopt(3): it keeps freed memory up to these sizes. By default, each body of a megabyte gets new
# memory, whose page faults take longer than the parsing, and block the event loop.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 16 << 20
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 4 << 20


class BoundedH11Protocol(H11Protocol):
    """Closes a connection whose next request does not begin in time, so that slow headers do not occupy it forever."""

    _headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timer for the headers of the first request, when a client has connected."""
        transport.max_size = MAX_READ_BYTES  # type: ignore[attr-defined]  # no stub has it
        super().connection_made(transport)
        self._start_headers_timer()

    def data_received(self, data: bytes) -> None:
        """Starts the timer with the first bytes of a request, and stops it when its headers are complete."""
        if self._headers_timer is None and not self._has_active_request:
            self._start_headers_timer()
        super().data_received(data)
        if self._has_active_request:
            self._cancel_headers_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer for the headers of a request, as the connection is closed."""
        self._cancel_headers_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP with status 400 and an error in OpenAI's format; closes the connection."""
        request_id = request_ids.new_request_id()
        request_ids.current_request_id.set(request_id)
        body = json.dumps(
            APIError(400, f"{msg[:1].lower()}{msg[1:].rstrip('.')}: send HTTP/1.1").body
        ).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{request_ids.REQUEST_ID_HEADER}: {request_id}\r\n\r\n"
        )
        is_response_started = self._has_active_request and self.cycle.response_started
        if not is_response_started:
            self.transport.write(head.encode() + body)
        self.transport.close()
        log.info("%s - (no HTTP) 400 - %s", self.client[0] if self.client else "-", request_id)

    @property
    def _has_active_request(self) -> bool:
        """Whether the headers of a request have arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start_headers_timer(self) -> None:
        """Starts the timer for the headers of the next request."""
        self._headers_timer = self.loop.call_later(HEADERS_TIMEOUT, self._close_if_idle)

    def _close_if_idle(self) -> None:
        """Closes the connection when the timer ends, unless it has an active request."""
        self._headers_timer = None
        if not self._has_active_request:
            self.transport.close()

    def _cancel_headers_timer(self) -> None:
        """Stops the timer for the headers of a request, if it runs."""
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None


class DrainingServer(uvicorn.Server):
    """A uvicorn server that lets requests finish within `--drain` seconds before it shuts down."""

    def __init__(self, app: FastAPI) -> None:
        self.service: ServerState = app.state.service
        drain_seconds = self.service.settings.drain
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # uvloop has no limit for reads, which `BoundedH11Protocol` sets
                http=BoundedH11Protocol,  # httptools limits neither the number of headers nor their size
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=LISTEN_BACKLOG,
                timeout_graceful_shutdown=int(drain_seconds) + ERROR_DELIVERY_SECONDS,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shuts down after SIGTERM or Ctrl-C: admitted requests finish first, within `--drain` seconds."""
        drain_task = asyncio.create_task(self.service.admission.close(self.service.settings.drain))
        await super().shutdown(sockets)
        drain_task.cancel()


def keep_freed_memory() -> None:
    """Makes glibc keep up to `TRIM_BYTES` of freed memory per arena instead of returning it to the system."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serves the app on a socket until SIGTERM or Ctrl-C."""
    keep_freed_memory()
    DrainingServer(app).run(sockets=[listener])
