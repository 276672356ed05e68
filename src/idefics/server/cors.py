"""Cross-origin requests: which pages in a browser may ask the server, beside its own.

A browser first asks whether it may (a preflight, which cannot carry a key), and shows a page only answers that name its
origin: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import Scope

from idefics.server.errors import APIError
from idefics.server.settings import ORIGIN_PATTERN, Settings

PREFLIGHT_MAX_AGE = b"600"  # that a browser may remember what it was told
ANY_ORIGIN = "*"
HEADER_NAMES_PATTERN = re.compile(
    r"[A-Za-z0-9!#$%&'*+.^_`|~,\t -]{1,2048}"
)  # a list of headers' names, as HTTP spells them

RawHeaders = list[tuple[bytes, bytes]]


class CORSPolicy:
    """The origins that the settings allow."""

    def __init__(self, settings: Settings) -> None:
        self.allowed_origins = settings.allowed_origin_set()

    def is_origin_allowed(self, origin: str) -> bool:
        """Whether pages of an origin may ask and read the answers."""
        return ANY_ORIGIN in self.allowed_origins or origin.lower() in self.allowed_origins

    def response_headers(self, scope: Scope) -> RawHeaders:
        """What each answer says, so that the page that asked may read it; nothing where no origin is allowed."""
        if not self.allowed_origins:
            return []
        vary = [] if ANY_ORIGIN in self.allowed_origins else [(b"vary", b"Origin")]
        origin = Headers(scope=scope).get("origin", "")
        if not origin or not self.is_origin_allowed(origin):
            return vary
        allowed_origin = b"*" if ANY_ORIGIN in self.allowed_origins else origin.encode("latin-1")
        exposed = b"x-request-id, retry-after"
        return [
            *vary,
            (b"access-control-allow-origin", allowed_origin),
            (b"access-control-expose-headers", exposed),
        ]

    def preflight_headers(self, scope: Scope) -> RawHeaders | None:
        """What a browser that asks whether a page may send a request is told; None where it is no such question.

        Raises:
            Fault: it may not.
        """
        request_headers = Headers(scope=scope)
        origin = request_headers.get("origin", "")
        if (
            scope["method"] != "OPTIONS"
            or not origin
            or "access-control-request-method" not in request_headers
        ):
            return None
        if not self.is_origin_allowed(origin):
            raise origin_not_allowed_error(origin)
        requested_headers = request_headers.get("access-control-request-headers", "")
        allowed_headers = (
            requested_headers
            if HEADER_NAMES_PATTERN.fullmatch(requested_headers)
            else "authorization, content-type, x-request-id"
        )
        wants_private_network = (
            "access-control-request-private-network" in request_headers
        )  # a public page that asks this machine
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", allowed_headers.encode("latin-1")),
            (b"access-control-max-age", PREFLIGHT_MAX_AGE),
            *([(b"access-control-allow-private-network", b"true")] if wants_private_network else []),
        ]


def origin_not_allowed_error(origin: str) -> APIError:
    """What a page of another origin is told."""
    flag_hint = (
        f"--allowed-origins {origin[:100]}"
        if ORIGIN_PATTERN.fullmatch(origin.lower())
        else "--allowed-origins '*' and a key"
    )
    return APIError(
        403,
        f"pages of {origin[:100]!r} may not ask this server: start it with {flag_hint}",
        code="unknown_origin",
    )
