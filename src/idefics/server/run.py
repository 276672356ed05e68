"""Serves an app on a socket, and ends in an orderly way: whoever has been let in is answered first."""

from __future__ import annotations

import asyncio
import signal
import socket

import uvicorn
from fastapi import FastAPI

from idefics.server.listening import Connection
from idefics.server.visit import Service

HEADER_BYTES = 32 << 10  # of one request, all together
LAST_WORDS = 5  # seconds that clients have to read the errors which end their answers
BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn's, whose end begins with a time in which answers may become complete."""

    def __init__(self, app: FastAPI) -> None:
        self.service: Service = app.state.service
        seconds = self.service.settings.drain
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # `Connection` bounds its reads; uvloop has no such setting
                http=Connection,  # of h11: httptools bounds neither the number of headers nor their size
                h11_max_incomplete_event_size=HEADER_BYTES,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=int(seconds) + LAST_WORDS,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What SIGTERM and Ctrl-C lead to."""
        closing = asyncio.create_task(self.service.admission.close(self.service.settings.drain))
        await super().shutdown(sockets)
        closing.cancel()


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serves until the process is told to end, by SIGTERM or Ctrl-C."""
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # uvicorn raises it again afterwards: an orderly end is no failure
    Server(app).run(sockets=[listener])
