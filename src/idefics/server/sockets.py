"""The socket and the signal handler of a server process. Both are set up before the model is loaded.

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
    """Makes SIGTERM end the process with exit code 0, after `finally` blocks and `atexit` handlers.

    To be called before the address is printed. uvicorn raises the signal again after its own shutdown.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def bind_socket(host: str, port: int) -> socket.socket:
    """Binds a TCP socket that does not listen yet: connections are refused until the model is loaded.

    The socket has an explicit protocol, since asyncio sets TCP_NODELAY only on such sockets. Without it, each answer
    on a connection that is kept alive would be delayed by 40 ms.

    Args:
        host: name or address.
        port: 0 takes a free one.

    Raises:
        BadSetting: the address does not exist, or the port is in use.
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
    """Starts accepting connections.

    Raises:
        BadSetting: another server has started to listen on the port since it was bound.
    """
    try:
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _bind_error(host, port, error) from None


def socket_url(listener: socket.socket) -> str:
    """The URL of a server on the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _bind_error(host: str, port: int, error: OSError | OverflowError) -> BadSetting:
    """The error for an address to which no socket can be bound: what is wrong, and what to do."""
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
