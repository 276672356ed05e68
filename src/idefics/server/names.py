"""By which names the server may be called.

A browser runs pages of strangers on this machine. One whose name is made to lead to 127.0.0.1 (DNS rebinding) would
reach a server without a key, and so would a form that it sends here. The headers `Host` and `Origin` give them away.
"""

from __future__ import annotations

import re

from starlette.types import Scope

from idefics.server.cors import CrossOrigin, refused
from idefics.server.faults import Fault
from idefics.server.settings import Settings, is_loopback

HOST = re.compile(r"\[([0-9a-f:.]+)\](?::\d*)?|([^\s:/\[\]]+)(?::\d*)?", re.IGNORECASE)  # and a port


class Names:
    """Those that the settings allow. This machine's own names always are."""

    def __init__(self, settings: Settings, cross_origin: CrossOrigin) -> None:
        self.cross_origin = cross_origin
        self.allowed = {*settings.names(), settings.host.lower()}
        has_key = bool(settings.keys())
        self.is_any = not settings.names() and (has_key or not is_loopback(settings.host))

    def check(self, scope: Scope) -> None:
        """Raises the Fault of a request that calls the server by another name, or that a page elsewhere sends."""
        if self.is_any:
            return
        headers = dict(reversed(scope["headers"]))
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if not self._knows(host):
            raise Fault(
                421,
                f"this server is not called {host[:100]!r}: ask for localhost, or start it with --allowed-hosts",
                code="unknown_host",
            )
        if origin and not self._knows(origin.partition("://")[2]) and not self.cross_origin.allows(origin):
            raise refused(origin)

    def _knows(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        name = (found[1] or found[2]).lower() if found else ""
        return name in self.allowed or is_loopback(name)
