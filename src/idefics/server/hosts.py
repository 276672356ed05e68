"""By which names the server may be called.

A browser runs pages of strangers on this machine. One whose name is made to lead to 127.0.0.1 (DNS rebinding) would
reach a server without a key, and so would a form that it sends here. The headers `Host` and `Origin` give them away.
"""

from __future__ import annotations

import re

from starlette.types import Scope

from idefics.server.cors import CORSPolicy, origin_not_allowed_error
from idefics.server.errors import APIError
from idefics.server.settings import Settings, is_loopback_host

HOST_PATTERN = re.compile(r"\[([0-9a-f:.]+)\](?::\d*)?|([^\s:/\[\]]+)(?::\d*)?", re.IGNORECASE)  # and a port


class HostCheck:
    """Those that the settings allow. This machine's own names always are."""

    def __init__(self, settings: Settings, cross_origin: CORSPolicy) -> None:
        self.cross_origin = cross_origin
        self.allowed_hosts = {*settings.allowed_host_names(), settings.host.lower()}
        has_key = bool(settings.api_keys())
        self.allows_any_host = not settings.allowed_host_names() and (
            has_key or not is_loopback_host(settings.host)
        )

    def check(self, scope: Scope) -> None:
        """Raises the Fault of a request that calls the server by another name, or that a page elsewhere sends."""
        if self.allows_any_host:
            return
        headers = dict(reversed(scope["headers"]))
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if not self._is_allowed(host):
            raise APIError(
                421,
                f"this server is not called {host[:100]!r}: ask for localhost, or start it with --allowed-hosts",
                code="unknown_host",
            )
        if (
            origin
            and not self._is_allowed(origin.partition("://")[2])
            and not self.cross_origin.is_origin_allowed(origin)
        ):
            raise origin_not_allowed_error(origin)

    def _is_allowed(self, host: str) -> bool:
        match = HOST_PATTERN.fullmatch(host)
        name = (match[1] or match[2]).lower() if match else ""
        return name in self.allowed_hosts or is_loopback_host(name)
