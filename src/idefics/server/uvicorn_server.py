"""Runs an app with uvicorn. On shutdown, admitted requests are answered first."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import socket

import uvicorn
from fastapi import FastAPI

from idefics.server.http_protocol import BoundedH11Protocol
from idefics.server.server_state import ServerState

MAX_HEADER_BYTES = 32 << 10  # all headers of a request together
ERROR_DELIVERY_SECONDS = 5  # after the drain time, for clients to read the errors that end their answers
LISTEN_BACKLOG = 2048
# Arguments of glibc's mallopt(3): it keeps freed memory up to these sizes. By default, each body of a megabyte gets new
# memory, whose page faults take longer than the parsing, and block the event loop.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 16 << 20
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 4 << 20


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
        """Shuts down after SIGTERM or Ctrl-C: requests finish while uvicorn waits for their connections."""
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
