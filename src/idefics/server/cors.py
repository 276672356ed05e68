"""CORS: which pages of other origins may call the server from a browser.

Before such a request a browser sends a preflight, which cannot have a key. A page may read only answers that allow its
origin: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from idefics.server.errors import APIError
from idefics.server.settings import ORIGIN_PATTERN, Settings

PREFLIGHT_MAX_AGE = b"600"  # seconds for which a browser may reuse the answer to a preflight
ANY_ORIGIN = "*"
HEADER_NAMES_PATTERN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~,\t -]{1,2048}")  # names with commas between

RawHeaders = list[tuple[bytes, bytes]]


class CORSPolicy:
    """The origins that `--allowed-origins` lists, and the CORS headers for requests from them."""

    def __init__(self, settings: Settings) -> None:
        self.allowed_origins = settings.allowed_origin_set()

    def check_origin(self, origin: str) -> None:
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

    def response_headers(self, request_headers: Headers) -> RawHeaders:
        """The CORS headers to add to a response, so that a page of an allowed origin can read it."""
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

    def preflight_headers(self, method: str, request_headers: Headers) -> RawHeaders | None:
        """The headers of the response to a preflight; None if the request is not a preflight.

        Raises:
            APIError: 403, the origin is not allowed.
        """
        origin = request_headers.get("origin", "")
        if method != "OPTIONS" or not origin or "access-control-request-method" not in request_headers:
            return None
        self.check_origin(origin)
        requested_headers = request_headers.get("access-control-request-headers", "")
        allowed_headers = (
            requested_headers
            if HEADER_NAMES_PATTERN.fullmatch(requested_headers)
            else "authorization, content-type, x-request-id"
        )
        headers = [
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", allowed_headers.encode("latin-1")),
            (b"access-control-max-age", PREFLIGHT_MAX_AGE),
        ]
        if "access-control-request-private-network" in request_headers:  # from a public page to this machine
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers

    def _is_origin_allowed(self, origin: str) -> bool:
        """Whether `--allowed-origins` lists the origin, or all origins."""
        return ANY_ORIGIN in self.allowed_origins or origin.lower() in self.allowed_origins
