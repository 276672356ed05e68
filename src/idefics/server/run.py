"""Serves an app on a socket, and ends in an orderly way: whoever has been let in is answered first."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import socket

import uvicorn
from fastapi import FastAPI

from idefics.server.listening import Connection
from idefics.server.visit import Service

HEADER_BYTES = 32 << 10  # of one request, all together
LAST_WORDS = 5  # seconds that clients have to read the errors which end their answers
BACKLOG = 2048
# mallopt(3), for glibc: freed memory up to these sizes is kept for the next request. Bodies of a megabyte would come in
# new memory each, whose page faults cost more than the parsing, while no other request is served.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 16 << 20
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 4 << 20


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


def keep_freed_memory() -> None:
    """Has glibc keep freed memory, up to `TRIM_BYTES` an arena, in place of giving it back to the system each time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serves until the process is told to end, by SIGTERM or Ctrl-C."""
    keep_freed_memory()
    Server(app).run(sockets=[listener])
