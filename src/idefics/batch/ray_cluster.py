"""Connects this process to a Ray cluster: one that runs, or one of this machine alone that ends with the process."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import warnings
from importlib import import_module
from typing import Any

from idefics.errors import BadSetting, IdeficsError, MissingExtra

CONNECT_SECONDS = 10.0  # for the head node to accept a connection
LOCAL, RUNNING = "local", "auto"  # addresses that are words

log = logging.getLogger(__name__)


def import_ray(what: str, module: str = "ray") -> Any:
    """Imports Ray, with its usage statistics off unless RAY_USAGE_STATS_ENABLED says otherwise.

    Args:
        what: what needs it, as the beginning of a sentence.
        module: Ray, or a module of it.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with warnings.catch_warnings(action="ignore"):
            return import_module(module)
    except ModuleNotFoundError:
        raise MissingExtra(what, "ray") from None


def connect(ray: Any, address: str) -> bool:
    """Connects to a cluster, unless this process is connected to one.

    Args:
        ray: see `import_ray`.
        address: "local" starts a cluster of this machine, which ends with this process; "auto" is the cluster that
            `ray start` has made this machine a node of, or RAY_ADDRESS; else HOST:PORT of the head node.

    Returns:
        Whether it connected; `ray.shutdown()` then disconnects.

    Raises:
        BadSetting: the address is not one of these.
        IdeficsError: there is no cluster at the address, or it cannot be used.
    """
    if ray.is_initialized():
        return False
    _check_address(address)
    debug = log.isEnabledFor(logging.DEBUG)
    settings: dict[str, Any] = {} if address != LOCAL else {"include_dashboard": False}
    is_main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if not debug:  # Ray prints what happens to workers and nodes; `log_to_driver` does not hold for that
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        with warnings.catch_warnings(action="ignore"):
            ray.init(
                address,
                log_to_driver=debug,
                logging_level=logging.DEBUG if debug else logging.ERROR,
                **settings,
            )
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        if address == RUNNING and isinstance(error, ConnectionError):
            raise IdeficsError(
                "this machine is not a node of a Ray cluster: `ray start --head` starts one, `ray start --address "
                "HOST:PORT` joins one, and local uses this machine alone"
            ) from None
        raise IdeficsError(f"the Ray cluster at {address} cannot be used: {last_line(error)}") from None
    finally:
        if is_main_thread:  # Ray sets a handler of its own
            signal.signal(signal.SIGTERM, on_sigterm)
    return True


def _check_address(address: str) -> None:
    """Raises unless an address is a word, or something listens there. Ray itself would try for minutes."""
    if address in (LOCAL, RUNNING):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise BadSetting(
            f"the Ray address is {address!r}: give local (a cluster of this machine), auto (the cluster that this "
            "machine is a node of) or HOST:PORT of the head node, such as 10.0.0.5:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise IdeficsError(
            f"no Ray cluster at {address}: {error}; `ray start --head` starts one, and `ray status` shows it"
        ) from None


def last_line(message: object) -> str:
    """The last line of a message: Ray's are many lines, and end with the cause."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return re.sub(r"^idefics\.errors\.\w+: ", "", lines[-1]) if lines else type(message).__name__
