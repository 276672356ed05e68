"""What a server process takes before anything else is loaded: its socket, and an orderly end on SIGTERM.

Imports nothing that takes time.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys

from idefics.errors import BadSetting


def exit_on_sigterm() -> None:
    """Has SIGTERM end the process with exit code 0, through `finally` and `atexit`.

    Must run before clients are told of the address. uvicorn raises the signal again after its own orderly end.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def bind_socket(host: str, port: int) -> socket.socket:
    """A TCP socket on an address, not listening yet: clients are refused until the model is loaded.

    It names its protocol: asyncio switches Nagle's algorithm off (TCP_NODELAY) for accepted sockets that do. With it,
    a kept-alive connection waits 40 ms for each answer.

    Args:
        port: 0 takes a free one.

    Raises:
        BadSetting: there is no such address, or the port is in use.
    """
    try:
        family, socket_type, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket_type, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise _bind_error(host, port, error) from None
    return listener


def start_listening(listener: socket.socket) -> None:
    """Accepts clients from here on.

    Raises:
        BadSetting: another server that was started at the same time listens on the port by now.
    """
    try:
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _bind_error(host, port, error) from None


def socket_url(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _bind_error(host: str, port: int, error: OSError | OverflowError) -> BadSetting:
    if isinstance(error, OverflowError):
        return BadSetting(f"--port is {port}: ports end at 65535; give another, or 0 for a free one")
    reason = (
        "the port is in use"
        if error.errno == errno.EADDRINUSE
        else error.strerror or os.strerror(error.errno or 0)
    )
    return BadSetting(
        f"cannot listen on {host}, port {port}: {reason}; give another --port (0: a free one) or --host"
    )
