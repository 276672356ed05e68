"""uvicorn's side of a connection, where a request's head has its time too."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 60.0  # that the head of a request may take to arrive


class Connection(H11Protocol):
    """Closed where no request begins in time: whoever drips headers would hold it for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there."""
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
