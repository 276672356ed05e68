"""Which URLs may be fetched, by the spelling of their host, the list of allowed hosts, and the host's IP addresses.

Resolves host names; opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from idefics.errors import BadPicture, BadSetting
from idefics.validation import short_repr

if TYPE_CHECKING:
    import httpx

UrlPolicy = str
NAMED_POLICIES = ("any", "public", "off")
PORT_BY_SCHEME = {"http": 80, "https": 443}

# A host name has at least two parts, and the last begins with a letter: what ends in a number is an IP address to some
# programs and a name to others (127.1, 2130706433, 0x7f.1).
HOSTNAME_PATTERN = re.compile(
    r"(?=.{4,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])", re.ASCII
)

# IANA's registries of special-purpose addresses, and further addresses that lead to this machine's network.
BLOCKED_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a provider's NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata service, a public address that is reachable from inside only
        "169.254.0.0/16",  # link-local; metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast and reserved
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
]
# All of IPv6 that is allocated. Outside of it are loopback, link-local, private and multicast addresses, mapped and
# embedded IPv4 addresses, and NAT64's prefixes.
PUBLIC_IPV6_NETWORK = ipaddress.IPv6Network("2000::/3")


def parse_allowed_hosts(policy: UrlPolicy, setting_name: str = "remote_images") -> tuple[str, ...]:
    """The hosts that a policy lists, in which `*.example.com` stands for all names below one.

    Empty for the policies "any", "public" and "off".

    Args:
        setting_name: name of the setting, for messages.

    Raises:
        BadSetting: neither a policy nor a list of hosts.
    """
    value: object = policy
    if not isinstance(value, str):
        raise BadSetting(
            f"{setting_name} is {short_repr(value)}; give any, public, off, or names of hosts in a text"
        )
    if policy in NAMED_POLICIES:
        return ()
    hosts = tuple(host.strip().lower() for host in policy.split(","))
    for host in hosts:
        if not HOSTNAME_PATTERN.fullmatch(host.removeprefix("*.")):
            raise BadSetting(
                f"{setting_name} is {policy!r}; give any, public or off, or names of hosts with commas between them "
                "(images.example.com,*.example.org)"
            )
    return hosts


def is_allowed_host(host: str, patterns: Sequence[str]) -> bool:
    """Whether a host name matches one of the `patterns` of `parse_allowed_hosts`."""
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns
    )


def validate_url_host(url: httpx.URL, raw_url: str) -> str:
    """Returns the host of a URL, after checking that all URL parsers would find the same host.

    Args:
        url: as parsed by httpx, which also makes the connection.
        raw_url: as the untrusted sender wrote it.

    Raises:
        BadPicture: a user name, an unusual port, a backslash, a space or non-ASCII characters before the path; a host
            that is neither a full name nor an IP address in its usual spelling.
    """
    host = url.raw_host.decode("ascii")
    authority = re.split(r"[/?#]", raw_url.partition("//")[2], maxsplit=1)[0]
    if "\\" in raw_url or not authority.isascii() or url.userinfo:
        raise BadPicture("a URL with a user name, a backslash or non-ASCII letters is not fetched")
    if url.port not in {None, PORT_BY_SCHEME[url.scheme]}:
        raise BadPicture(f"a URL with the port {url.port} is not fetched: leave the port out")
    if not HOSTNAME_PATTERN.fullmatch(host) and _parse_ip(host) is None:
        raise BadPicture(
            "a URL whose host is no full name is not fetched: write it as https://images.example.com/cat.jpg"
        )
    return host


def resolve_public_address(host: str, port: int) -> str:
    """Resolves a host name and returns its first IP address; all of them must be public.

    The caller connects to the returned address, as a second resolution could give another one.

    Raises:
        BadPicture: no such host, or one of its addresses is not public. The message does not name the address, which
            could tell an untrusted sender about this network.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise BadPicture(f"{host}: no such host") from None
    addresses = [str(entry[4][0]) for entry in entries]
    if not addresses or not all(map(is_public_ip, addresses)):
        raise BadPicture(f"{host} is not on the public internet")
    return addresses[0]


def is_public_ip(text: str) -> bool:
    """Whether a text is an IP address of the public internet that does not map or embed another address."""
    address = _parse_ip(text)
    if address is None or any(address in network for network in BLOCKED_NETWORKS):
        return False
    return address.version == 4 or address in PUBLIC_IPV6_NETWORK


def _parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parses an IP address in its usual spelling; None for other texts: octal, hexadecimal, short forms, zones."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
