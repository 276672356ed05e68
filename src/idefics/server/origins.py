"""Checks of the headers `Host` and `Origin`, and CORS: which pages may call the server from a browser.

A page of another website in a browser on this machine can send forms to a server on 127.0.0.1, and it can give its own
host name that address (DNS rebinding). Both would reach a server without a key; the headers reveal them.

With CORS, pages of allowed origins may call the server. Before such a request a browser sends a preflight, which cannot
have a key. A page may read only answers that allow its origin: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from idefics.server.errors import APIError
from idefics.server.list_settings import ORIGIN_PATTERN, parse_host_names, parse_origins
from idefics.server.settings import Settings, is_loopback_host

HOST_PATTERN = re.compile(
    r"\[([0-9a-f:.]+)\](?::\d*)?|([^\s:/\[\]]+)(?::\d*)?", re.IGNORECASE
)  # with any port
PREFLIGHT_MAX_AGE = "600"  # seconds for which a browser may reuse the answer to a preflight
ANY_ORIGIN = "*"
HEADER_NAMES_PATTERN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~,\t -]{1,2048}")  # names with commas between


class OriginPolicy:
    """The hosts that requests may be addressed to, the origins whose pages may send them, and their CORS headers."""

    def __init__(self, settings: Settings) -> None:
        self.allowed_origins = parse_origins(settings.allowed_origins)
        allowed_names = parse_host_names(settings.allowed_hosts)
        self.allowed_hosts = {*allowed_names, settings.host.lower()}
        self.allows_any_host = not allowed_names and (settings.has_key or not is_loopback_host(settings.host))

    def check_host_and_origin(self, headers: Headers) -> None:
        """Checks the headers `Host` and `Origin` of a request; any host is right if the settings allow it.

        Then pages of other origins are refused without a bearer token: a browser sends a password by itself, also with
        the form of another website.

        Raises:
            APIError: 421, the host is not allowed; 403, the request comes from a page of another origin.
        """
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if self.allows_any_host:
            has_bearer_token = headers.get("authorization", "").lower().startswith("bearer ")
            if origin and not has_bearer_token and origin.partition("://")[2].lower() != host.lower():
                self._check_origin(origin)
            return
        if not self._is_host_allowed(host):
            raise APIError(
                421,
                f"host {host[:100]!r} is not allowed: use localhost, or start the server with --allowed-hosts",
                code="unknown_host",
            )
        if origin and not self._is_host_allowed(origin.partition("://")[2]):
            self._check_origin(origin)

    def response_headers(self, request_headers: Headers) -> list[tuple[bytes, bytes]]:
        """The CORS headers to add to a response; only with an allowed origin do they let a page read it."""
        if not self.allowed_origins:
            return []
        vary = [] if ANY_ORIGIN in self.allowed_origins else [(b"vary", b"Origin")]
        origin = request_headers.get("origin", "")
        if not origin or not self._is_origin_allowed(origin):
            return vary
        allowed_origin = b"*" if ANY_ORIGIN in self.allowed_origins else origin.encode("latin-1")
        return [
            *vary,
            (b"access-control-allow-origin", allowed_origin),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
        ]

    def preflight_headers(self, method: str, request_headers: Headers) -> dict[str, str] | None:
        """The headers of the response to a preflight; None if the request is not a preflight.

        Raises:
            APIError: 403, the origin is not allowed.
        """
        origin = request_headers.get("origin", "")
        if method != "OPTIONS" or not origin or "access-control-request-method" not in request_headers:
            return None
        self._check_origin(origin)
        requested_headers = request_headers.get("access-control-request-headers", "")
        headers = {
            "access-control-allow-methods": "DELETE, GET, HEAD, POST",
            "access-control-allow-headers": requested_headers
            if HEADER_NAMES_PATTERN.fullmatch(requested_headers)
            else "authorization, content-type, x-request-id",
            "access-control-max-age": PREFLIGHT_MAX_AGE,
        }
        if "access-control-request-private-network" in request_headers:  # from a public page to this machine
            headers["access-control-allow-private-network"] = "true"
        return headers

    def _check_origin(self, origin: str) -> None:
        """Raises an `APIError` (403) if the origin is not allowed."""
        if self._is_origin_allowed(origin):
            return
        flag_hint = (
            f"--allowed-origins {origin[:100]}"
            if ORIGIN_PATTERN.fullmatch(origin.lower())
            else "--allowed-origins '*' and a key"
        )
        raise APIError(
            403,
            f"cross-origin request from {origin[:100]!r} refused: start the server with {flag_hint}",
            code="unknown_origin",
        )

    def _is_origin_allowed(self, origin: str) -> bool:
        """Whether `--allowed-origins` lists the origin, or all origins."""
        return ANY_ORIGIN in self.allowed_origins or origin.lower() in self.allowed_origins

    def _is_host_allowed(self, host: str) -> bool:
        """Whether a host, with or without a port, is allowed or is this machine."""
        match = HOST_PATTERN.fullmatch(host)
        name = (match[1] or match[2]).lower() if match else ""
        return name in self.allowed_hosts or is_loopback_host(name)
