"""Checks of the headers `Host` and `Origin`, against pages of other websites in a browser on this machine.

A page can send forms to a server on 127.0.0.1, and it can give its own host name that address (DNS rebinding). Both
would reach a server without a key; the headers reveal them.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from idefics.server.cors import CORSPolicy
from idefics.server.errors import APIError
from idefics.server.settings import Settings, is_loopback_host

HOST_PATTERN = re.compile(
    r"\[([0-9a-f:.]+)\](?::\d*)?|([^\s:/\[\]]+)(?::\d*)?", re.IGNORECASE
)  # with any port


class HostAndOriginCheck:
    """Accepts requests that are addressed to this machine or to a host that the settings allow."""

    def __init__(self, settings: Settings, cors: CORSPolicy) -> None:
        self.cors = cors
        allowed_names = settings.allowed_host_names()
        self.allowed_hosts = {*allowed_names, settings.host.lower()}
        self.allows_any_host = not allowed_names and (settings.has_key or not is_loopback_host(settings.host))

    def check(self, headers: Headers) -> None:
        """Checks the headers `Host` and `Origin` of a request, unless the settings allow any host.

        Raises:
            APIError: 421, the host is not allowed; 403, the request comes from a page of another origin.
        """
        if self.allows_any_host:
            return
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if not self._is_host_allowed(host):
            raise APIError(
                421,
                f"host {host[:100]!r} is not allowed: use localhost, or start the server with --allowed-hosts",
                code="unknown_host",
            )
        if origin and not self._is_host_allowed(origin.partition("://")[2]):
            self.cors.check_origin(origin)

    def _is_host_allowed(self, host: str) -> bool:
        """Whether a host, with or without a port, is allowed or is this machine."""
        match = HOST_PATTERN.fullmatch(host)
        name = (match[1] or match[2]).lower() if match else ""
        return name in self.allowed_hosts or is_loopback_host(name)
