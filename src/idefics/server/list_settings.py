"""Settings that are lists between commas: host names, origins (scheme, host and port), servers, adapters."""

from __future__ import annotations

import re

from idefics.errors import BadSetting

HOST_NAME_PATTERN = re.compile(r"[^\s:/*\[\]]+")
ORIGIN_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s:/?#@*\[\]]+)(:\d{1,5})?/?")
ORIGIN_OR_ALL_PATTERN = re.compile(rf"\*|{ORIGIN_PATTERN.pattern}")
SERVER_PATTERN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?/?")  # what a policy of content (CSP) can name
# An origin with the default port of its scheme, which browsers leave out.
DEFAULT_PORT_PATTERN = re.compile(r"^(http://.*(?=:80$)|https://.*(?=:443$)):\d+$")
ADAPTERS_EXAMPLE = "flags=./flags-adapter,plants=owner/plants-adapter"


def _split_list(setting: str, text: str | None, pattern: re.Pattern[str], expected: str) -> list[str]:
    """The parts of a setting between commas, in lower case, without blanks and a slash at the end; empty for None.

    Raises:
        BadSetting: one of them does not match the pattern; the message says what is expected.
    """
    parts = [part.strip().lower() for part in (text or "").split(",") if part.strip()]
    for part in parts:
        if not pattern.fullmatch(part):
            raise BadSetting(f"{setting} has {part!r}; give {expected}")
    return [part.removesuffix("/") for part in parts]


def parse_host_names(text: str | None) -> list[str]:
    """The host names of the setting `allowed_hosts`. Raises BadSetting if one of them is not a host name."""
    expected = "host names without scheme and port, such as box,idefics.example.com"
    return _split_list("allowed_hosts", text, HOST_NAME_PATTERN, expected)


def parse_origins(text: str | None) -> frozenset[str]:
    """The origins of the setting `allowed_origins`, as browsers send them: without default ports; "*" for all.

    Raises:
        BadSetting: one of them is not an origin.
    """
    expected = (
        "origins as browsers send them (scheme, host, port), such as https://app.example.com or "
        "http://localhost:3000"
    )
    origins = _split_list("allowed_origins", text, ORIGIN_OR_ALL_PATTERN, expected)
    return frozenset(DEFAULT_PORT_PATTERN.sub(r"\1", one) for one in origins)


def parse_servers(text: str | None) -> list[str]:
    """The addresses of the setting `compare_with`. Raises BadSetting if one of them is not that of a server."""
    expected = "addresses of servers (scheme, host, port), such as http://box:8000"
    return _split_list("compare_with", text, SERVER_PATTERN, expected)


def parse_adapters(text: str | None, model_name: str) -> dict[str, str]:
    """The folders or hub ids of adapters by the names that clients use.

    Args:
        text: "name=path,name=path"; None: there are none.
        model_name: the name of the model without an adapter.

    Raises:
        BadSetting: a name or a path is missing, or a name is there twice.
    """
    adapters: dict[str, str] = {}
    for part in text.split(",") if text is not None else ():
        name, _, path = (one.strip() for one in part.partition("="))
        if not name or not path:
            raise BadSetting(
                f"adapters has {part!r}; give names and folders or hub ids, such as {ADAPTERS_EXAMPLE}"
            )
        if name == model_name:
            raise BadSetting(
                f"adapters has {name!r}, which is the name of the model itself: give another, or --name for the model"
            )
        if name in adapters:
            raise BadSetting(f"adapters has {name!r} twice: give each adapter a name of its own")
        adapters[name] = path
    return adapters
