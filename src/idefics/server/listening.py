"""uvicorn's side of a connection, where a request's head has its time too."""

from __future__ import annotations

import asyncio
import json
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

from idefics.server import request_ids
from idefics.server.faults import Fault

log = logging.getLogger("idefics.server.access")

HEAD_SECONDS = 60.0  # that the head of a request may take to arrive
READ_BYTES = 32 << 10  # most bytes read from one socket per turn of the event loop; asyncio: 256 KiB


class Connection(H11Protocol):
    """Closed where no request begins in time: whoever drips headers would hold it for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # no stub has it
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        if self._timer is None and not self._is_asked:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        super().data_received(data)
        if self._is_asked:
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP: an error as all others, and the end of the connection."""
        request_ids.current.set(request_ids.new_id())
        body = json.dumps(Fault(400, f"{msg[:1].lower()}{msg[1:].rstrip('.')}: send HTTP/1.1").body).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{request_ids.HEADER.decode()}: {request_ids.current.get()}\r\n\r\n"
        )
        if not (
            self._is_asked and self.cycle.response_started
        ):  # else it would stand in the midst of that one
            self.transport.write(head.encode() + body)
        self.transport.close()
        client = self.client[0] if self.client else "-"
        log.info("%s - (no HTTP) 400 - %s", client, request_ids.current.get())

    @property
    def _is_asked(self) -> bool:
        """Whether a request is under way, its head complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        self._timer = None
        if not self._is_asked:
            self.transport.close()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
