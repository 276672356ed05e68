"""The only way to the network: http(s) addresses under a policy, and data URIs.

Knows addresses and bytes; does not know pictures.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote_to_bytes

from idefics.errors import BadPicture, BadSetting

if TYPE_CHECKING:
    import httpx

Policy = Literal["any", "public", "off"]
REMOTE = re.compile(r"https?://\S+|data:[^\s,]*[;/][^\s,]*,\S*", re.IGNORECASE)
REDIRECTS = 3


def is_remote(text: str) -> bool:
    """Whether the whole text is an http(s) address or a data URI."""
    return REMOTE.fullmatch(text) is not None


def short(name: str) -> str:
    """An address or path for an error message: one line, not too long."""
    if name[:5].lower() == "data:":
        return "a data URI"
    name = name if len(name) <= 100 else f"{name[:97]}..."
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Gets remote pictures and videos, as far as its policy allows.

    Attributes:
        policy: "any" address that the caller names; "public" hosts of the open internet only, for data from
            strangers; "off" none at all. Data URIs need no network and are always read.
        limit_bytes: the most that one of them may weigh.
        timeout: seconds for one of them, redirects included.
    """

    policy: Policy = "any"
    limit_bytes: int = 20 * 2**20
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.policy not in {"any", "public", "off"}:
            raise BadSetting(f"remote_images is {self.policy!r}; give any, public or off")

    def get(self, url: str) -> bytes:
        """The bytes behind an http(s) address or a data URI.

        Raises:
            BadPicture: refused by the policy, unreachable, too large or too slow.
        """
        if url[:5].lower() == "data:":
            return self._decode(url)
        if self.policy == "off":
            raise BadPicture(
                f"{short(url)} may not be fetched, remote pictures are off: allow them with "
                'remote_images="any" (--remote-images any), or download it first'
            )
        import httpx

        try:
            return self._get(url)
        except httpx.TimeoutException:
            raise BadPicture(
                f"{short(url)} took longer than {self.timeout:g} seconds: download it first"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
            # The last two: the environment names a proxy that httpx cannot use.
            raise BadPicture(f"{short(url)} cannot be fetched: {error}") from None

    def _decode(self, uri: str) -> bytes:
        head, comma, body = uri.partition(",")
        if not comma:
            raise BadPicture("a data URI has no comma: it reads data:image/png;base64,...")
        if len(body) > 4 * self.limit_bytes:  # base64 takes 4/3, percent signs 3: not worth decoding
            raise BadPicture(self._too_large("a data URI"))
        try:
            data = unquote_to_bytes(body)
            if head.lower().endswith(";base64"):
                data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise BadPicture("a data URI is not valid base64: it reads data:image/png;base64,...") from None
        if len(data) > self.limit_bytes:
            raise BadPicture(self._too_large("a data URI"))
        return data

    def _get(self, url: str) -> bytes:
        import httpx

        deadline = time.monotonic() + self.timeout
        # Proxies and passwords of the environment are the owner's, for the owner's own addresses.
        trusts_environment = self.policy == "any"
        with httpx.Client(verify=_tls(), trust_env=trusts_environment, timeout=self.timeout) as client:
            # Each read has its own timeout; a host that drips single bytes meets this one.
            watch = threading.Timer(self.timeout, client.close)
            watch.daemon = True
            watch.start()
            try:
                return self._follow(client, httpx.URL(url), deadline)
            except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed between two redirects
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("deadline") from None
                raise
            finally:
                watch.cancel()

    def _follow(self, client: httpx.Client, url: httpx.URL, deadline: float) -> bytes:
        address = url
        for _ in range(REDIRECTS + 1):
            if address.scheme not in {"http", "https"} or not address.host:
                raise BadPicture(f"{short(str(address))} is not an http(s) address")
            target, extensions = address, {}
            # Not compressed: the cap counts what arrives.
            headers = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}
            if self.policy == "public":
                target = address.copy_with(host=_public_address(address.host, address.port))
                headers["Host"] = address.netloc.decode()
                extensions["sni_hostname"] = address.raw_host.decode()
            with client.stream("GET", target, headers=headers, extensions=extensions) as response:
                if not response.has_redirect_location:
                    return self._read(response, str(url), deadline)
                address = address.join(response.headers["location"])
        raise BadPicture(f"{short(str(url))} redirects more than {REDIRECTS} times: download it first")

    def _read(self, response: httpx.Response, url: str, deadline: float) -> bytes:
        import httpx

        if response.status_code != httpx.codes.OK:
            raise BadPicture(f"{short(url)} cannot be fetched: the server answers {response.status_code}")
        data = bytearray()
        for chunk in response.iter_raw(65536):
            data += chunk
            if len(data) > self.limit_bytes:
                raise BadPicture(self._too_large(short(url)))
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("deadline")
        return bytes(data)

    def _too_large(self, name: str) -> str:
        return f"{name} is larger than {self.limit_bytes:,} bytes: make it smaller"


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than fetching a picture: once is enough."""
    import httpx

    return httpx.create_ssl_context()


def _public_address(host: str, port: int | None) -> str:
    """The address to connect to: the first of a host all of whose addresses are on the open internet.

    The caller connects to this very address: a second look-up could give another one.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise BadPicture(f"{host}: no such host") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not _is_public(address):
            raise BadPicture(
                f"{host} is {address}, not on the open internet: allow it with "
                'remote_images="any" (--remote-images any)'
            )
    return addresses[0]


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour  # an IPv4 address in other clothes
        if inner is not None:
            return _is_public(str(inner))
    # `is_global` alone lets multicast through, and the reserved ::/8, which holds NAT64's 64:ff9b::/96.
    return address.is_global and not address.is_multicast and not address.is_reserved
