"""Settings that are lists of names between commas, and those that list origins: scheme, host and port."""

from __future__ import annotations

import re

from idefics.errors import BadSetting

ORIGIN_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s:/?#@*\[\]]+)(:\d{1,5})?/?")
SERVER_PATTERN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?/?")  # what a policy of content (CSP) can name
# An origin with the default port of its scheme, which browsers leave out.
DEFAULT_PORT_PATTERN = re.compile(r"^(http://.*(?=:80$)|https://.*(?=:443$)):\d+$")


def split_list(text: str | None) -> list[str]:
    """The parts of a setting between commas, in lower case, without blanks; empty for None."""
    return [part.strip().lower() for part in (text or "").split(",") if part.strip()]


def parse_origins(text: str | None) -> frozenset[str]:
    """The origins of the setting `allowed_origins`, as browsers send them: without default ports; "*" for all.

    Raises:
        BadSetting: one of them is not an origin.
    """
    origins = split_list(text)
    for one in origins:
        if one != "*" and not ORIGIN_PATTERN.fullmatch(one):
            raise BadSetting(
                f"allowed_origins has {one!r}; give origins as browsers send them (scheme, host, port), such as "
                "https://app.example.com or http://localhost:3000"
            )
    return frozenset(DEFAULT_PORT_PATTERN.sub(r"\1", one.removesuffix("/")) for one in origins)


def parse_servers(text: str | None) -> list[str]:
    """The addresses of the setting `compare_with`, without a slash at the end.

    Raises:
        BadSetting: one of them is not the address of a server.
    """
    servers = split_list(text)
    for one in servers:
        if not SERVER_PATTERN.fullmatch(one):
            raise BadSetting(
                f"compare_with has {one!r}; give addresses of servers (scheme, host, port), such as http://box:8000"
            )
    return [one.removesuffix("/") for one in servers]
