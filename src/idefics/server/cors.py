"""Cross-origin requests: which pages in a browser may ask the server, beside its own.

A browser first asks whether it may (a preflight, which cannot carry a key), and shows a page only answers that name its
origin: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import Scope

from idefics.server.faults import Fault
from idefics.server.settings import ORIGIN, Settings

SECONDS = b"600"  # that a browser may remember what it was told
ANY = "*"
NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~,\t -]{1,2048}")  # a list of headers' names, as HTTP spells them

RawHeaders = list[tuple[bytes, bytes]]


class CrossOrigin:
    """The origins that the settings allow."""

    def __init__(self, settings: Settings) -> None:
        self.origins = settings.origins()

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may ask and read the answers."""
        return ANY in self.origins or origin.lower() in self.origins

    def headers(self, scope: Scope) -> RawHeaders:
        """What each answer says, so that the page that asked may read it; nothing where no origin is allowed."""
        if not self.origins:
            return []
        vary = [] if ANY in self.origins else [(b"vary", b"Origin")]
        origin = Headers(scope=scope).get("origin", "")
        if not origin or not self.allows(origin):
            return vary
        named = b"*" if ANY in self.origins else origin.encode("latin-1")
        exposed = b"x-request-id, retry-after"
        return [
            *vary,
            (b"access-control-allow-origin", named),
            (b"access-control-expose-headers", exposed),
        ]

    def preflight(self, scope: Scope) -> RawHeaders | None:
        """What a browser that asks whether a page may send a request is told; None where it is no such question.

        Raises:
            Fault: it may not.
        """
        asked = Headers(scope=scope)
        origin = asked.get("origin", "")
        if scope["method"] != "OPTIONS" or not origin or "access-control-request-method" not in asked:
            return None
        if not self.allows(origin):
            raise refused(origin)
        wanted = asked.get("access-control-request-headers", "")
        names = wanted if NAMES.fullmatch(wanted) else "authorization, content-type, x-request-id"
        private = "access-control-request-private-network" in asked  # a public page that asks this machine
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", names.encode("latin-1")),
            (b"access-control-max-age", SECONDS),
            *([(b"access-control-allow-private-network", b"true")] if private else []),
        ]


def refused(origin: str) -> Fault:
    """What a page of another origin is told."""
    way = (
        f"--allowed-origins {origin[:100]}"
        if ORIGIN.fullmatch(origin.lower())
        else "--allowed-origins '*' and a key"
    )
    return Fault(
        403, f"pages of {origin[:100]!r} may not ask this server: start it with {way}", code="unknown_origin"
    )
