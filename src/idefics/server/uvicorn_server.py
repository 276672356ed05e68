"""Serves an app on a socket, and ends in an orderly way: whoever has been let in is answered first."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import socket

import uvicorn
from fastapi import FastAPI

from idefics.server.http_protocol import BoundedH11Protocol
from idefics.server.request_context import ServerState

MAX_HEADER_BYTES = 32 << 10  # of one request, all together
ERROR_DELIVERY_SECONDS = 5  # seconds that clients have to read the errors which end their answers
LISTEN_BACKLOG = 2048
# mallopt(3), for glibc: freed memory up to these sizes is kept for the next request. Bodies of a megabyte would come in
# new memory each, whose page faults cost more than the parsing, while no other request is served.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 16 << 20
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 4 << 20


class DrainingServer(uvicorn.Server):
    """uvicorn's, whose end begins with a time in which answers may become complete."""

    def __init__(self, app: FastAPI) -> None:
        self.service: ServerState = app.state.service
        drain_seconds = self.service.settings.drain
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # `BoundedH11Protocol` bounds its reads; uvloop has no such setting
                http=BoundedH11Protocol,  # of h11: httptools bounds neither the number of headers nor their size
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
        """What SIGTERM and Ctrl-C lead to."""
        drain_task = asyncio.create_task(self.service.admission.close(self.service.settings.drain))
        await super().shutdown(sockets)
        drain_task.cancel()


def keep_freed_memory() -> None:
    """Has glibc keep freed memory, up to `TRIM_BYTES` an arena, in place of giving it back to the system each time."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serves until the process is told to end, by SIGTERM or Ctrl-C."""
    keep_freed_memory()
    DrainingServer(app).run(sockets=[listener])
