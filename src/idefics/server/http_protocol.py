"""uvicorn's side of a connection, where a request's head has its time too."""

from __future__ import annotations

import asyncio
import json
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

from idefics.server import request_ids
from idefics.server.errors import APIError

log = logging.getLogger("idefics.server.access")

HEADERS_TIMEOUT = 60.0  # that the head of a request may take to arrive
MAX_READ_BYTES = 32 << 10  # most bytes read from one socket per turn of the event loop; asyncio: 256 KiB


class BoundedH11Protocol(H11Protocol):
    """Closed where no request begins in time: whoever drips headers would hold it for ever."""

    _headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        transport.max_size = MAX_READ_BYTES  # type: ignore[attr-defined]  # no stub has it
        super().connection_made(transport)
        self._headers_timer = self.loop.call_later(HEADERS_TIMEOUT, self._close_if_idle)

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        if self._headers_timer is None and not self._has_active_request:
            self._headers_timer = self.loop.call_later(HEADERS_TIMEOUT, self._close_if_idle)
        super().data_received(data)
        if self._has_active_request:
            self._cancel_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._cancel_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP: an error as all others, and the end of the connection."""
        request_ids.current_request_id.set(request_ids.new_request_id())
        body = json.dumps(
            APIError(400, f"{msg[:1].lower()}{msg[1:].rstrip('.')}: send HTTP/1.1").body
        ).encode()
        response_head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{request_ids.REQUEST_ID_HEADER.decode()}: {request_ids.current_request_id.get()}\r\n\r\n"
        )
        if not (
            self._has_active_request and self.cycle.response_started
        ):  # else it would stand in the midst of that one
            self.transport.write(response_head.encode() + body)
        self.transport.close()
        client = self.client[0] if self.client else "-"
        log.info("%s - (no HTTP) 400 - %s", client, request_ids.current_request_id.get())

    @property
    def _has_active_request(self) -> bool:
        """Whether a request is under way, its head complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _close_if_idle(self) -> None:
        self._headers_timer = None
        if not self._has_active_request:
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
