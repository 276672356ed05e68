"""The only way to the network: http(s) addresses under a policy, and data URIs.

Knows addresses and bytes; does not know pictures.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from idefics.errors import BadPicture
from idefics.formats import recognised
from idefics.processing.addresses import PORTS, Policy, allowed_hosts, is_allowed, look_up, spelled_plainly

if TYPE_CHECKING:
    import httpx

    T = TypeVar("T")

# Base64 may be broken into lines (RFC 2045, 6.8), which are longer than words that may follow, and has two alphabets
# (RFC 4648, 4 and 5). Both patterns are read once, from left to right.
BASE64 = r"\s*+(?:[A-Za-z0-9+/_%-]{16,}+\s++)*+[A-Za-z0-9+/_%-]*+=*+\s*+"
log = logging.getLogger(__name__)

REMOTE = re.compile(rf"https?://\S+|data:[^\s,;/]*[;/][^\s,]*(?:,\S*|(?<=;base64),{BASE64})", re.IGNORECASE)
REDIRECTS = 3

BARE_BASE64 = "data:;base64,"  # what base64 that was given without a data URI is given


def is_remote(text: str) -> bool:
    """Whether the whole text is an http(s) address or a data URI."""
    return REMOTE.fullmatch(text) is not None


def is_data(text: str) -> bool:
    """Whether a remote picture stands in its address itself, and so needs no network."""
    return text[:5].lower() == "data:"


def as_address(text: str) -> str:
    """Base64 of a picture file as a data URI, an address without white space around it, anything else as it is."""
    stripped = text.strip()
    if is_remote(stripped):
        return stripped
    beginning = decode_base64("".join(text[:512].split())[:64].encode("utf-8", "replace"))
    if len(text) > 64 and beginning and recognised(beginning) is not None:
        return f"{BARE_BASE64}{stripped}"
    return text


def short(name: str) -> str:
    """An address or path for an error message: one line, not too long."""
    if is_data(name):
        return "the base64 of a picture" if name.startswith(BARE_BASE64) else "a data URI"
    name = name if len(name) <= 100 else f"{name[:97]}..."
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def decode_base64(text: bytes) -> bytes | None:
    """The bytes that base64 stands for, or None where it is none.

    White space is left out, padding may be missing, and both alphabets are read (RFC 4648, 4 and 5).
    """
    plain = b"".join(text.split()).rstrip(b"=").translate(URL_SAFE)
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Gets remote pictures and videos, as far as its policy allows, and says whom it gets them for.

    Attributes:
        policy: "any" address that the caller names; "public" hosts of the open internet only, for data from
            strangers; names of hosts with commas between them ("images.example.com,*.example.org"), and those only on
            the open internet; "off" none at all. Data URIs need no network and are always read.
        limit_bytes: the most that one of them may weigh.
        timeout: seconds for one of them, names' look-ups and redirects included.
        strangers: whether all pictures come from strangers, however they come: then no file of this machine is opened,
            and what is opened is bounded as `processing.strangers` says.
        turns: held while a picture is decoded and prepared, not while it is fetched: a semaphore bounds how many are at
            once.
        connections: held while one is fetched: a semaphore bounds how many are at once.
    """

    policy: Policy = "any"
    limit_bytes: int = 20 * 2**20
    timeout: float = 10.0
    strangers: bool = False
    turns: AbstractContextManager[Any] = field(default_factory=nullcontext)
    connections: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        allowed_hosts(self.policy)

    def distrusts(self, source: object) -> bool:
        """Whether a picture is a stranger's: the owner's own are files and objects, and under "any" all of them."""
        return self.strangers or (self.policy != "any" and isinstance(source, str) and is_remote(source))

    def get(self, url: str) -> bytes:
        """The bytes behind an http(s) address or a data URI.

        Raises:
            BadPicture: refused by the policy, unreachable, too large or too slow.
        """
        if is_data(url):
            return self._decode(url)
        if self.policy == "off":
            raise BadPicture(
                f"{short(url)} may not be fetched, remote pictures are off: "
                + self._way_out("download it first and send the picture itself")
            )
        import httpx

        began = time.monotonic()
        try:
            data = self._get(url)
            log.debug("fetched %d bytes in %.2f s", len(data), time.monotonic() - began)
            return data
        except BadPicture:
            raise
        except (httpx.TimeoutException, TimeoutError):
            raise BadPicture(
                f"{short(url)} took longer than {self.timeout:g} seconds: download it first"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
            # The last two: the environment names a proxy that httpx cannot use.
            why = error if self.policy == "any" else "its host does not answer as it should"
            raise BadPicture(f"{short(url)} cannot be fetched: {why}") from None

    def _way_out(self, words: str) -> str:
        """What can be done about a refusal, by a stranger or by the owner."""
        return (
            words
            if self.strangers
            else f'{words}, or allow it with remote_images="any" (--remote-images any)'
        )

    def _decode(self, uri: str) -> bytes:
        head, comma, body = uri.partition(",")
        if not comma:
            raise BadPicture("a data URI has no comma: it reads data:image/png;base64,...")
        if len(body) > 4 * self.limit_bytes:  # base64 takes 4/3, percent signs 3: not worth decoding
            raise BadPicture(self._too_large("a data URI"))
        data = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            decoded = decode_base64(data)
            if decoded is None:
                form = "" if uri.startswith(BARE_BASE64) else ": it reads data:image/png;base64,..."
                raise BadPicture(f"{short(uri)} is not valid base64{form or ': send it whole and unchanged'}")
            data = decoded
        if len(data) > self.limit_bytes:
            raise BadPicture(self._too_large("a data URI"))
        return data

    def _get(self, url: str) -> bytes:
        import httpx

        deadline = time.monotonic() + self.timeout
        with httpx.Client(
            verify=_tls(),
            # Proxies and passwords of the environment are the owner's, for the owner's own addresses.
            trust_env=self.policy == "any",
            timeout=self.timeout,
        ) as client:  # closed at the deadline, which also ends the thread's reading
            # The look-up of a name cannot be interrupted, only left.
            return in_daemon_thread(lambda: self._follow(client, url, deadline)).result(self.timeout)

    def _follow(self, client: httpx.Client, url: str, deadline: float) -> bytes:
        import httpx

        def in_time(*_: object) -> None:
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("deadline")

        address, written = httpx.URL(url), url
        for _ in range(REDIRECTS + 1):
            in_time()
            if address.scheme not in PORTS or not address.host:
                raise BadPicture(f"{short(str(address))} is not an http(s) address")
            target = address
            extensions: dict[str, Any] = {"trace": in_time}
            # Not compressed: the cap counts what arrives.
            headers = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}
            if self.policy != "any":
                host = spelled_plainly(address, written)
                target = address.copy_with(host=self._checked(host, PORTS[address.scheme]))
                headers["Host"] = address.netloc.decode()
                extensions["sni_hostname"] = host
                client.cookies.clear()
            with client.stream("GET", target, headers=headers, extensions=extensions) as response:
                if not response.has_redirect_location:
                    return self._read(response, url, in_time)
                # Its body is not read, so its connection, opened for this name, serves no other.
                written = response.headers["location"]
                address = address.join(written)
        raise BadPicture(f"{short(url)} redirects more than {REDIRECTS} times: download it first")

    def _checked(self, host: str, port: int) -> str:
        """The address that a host is connected to by.

        A host of a list is looked up as any other: who lists a name does not say where its owner may let it lead.
        """
        hosts = allowed_hosts(self.policy)
        if hosts and not is_allowed(host, hosts):
            raise BadPicture(f"{host} is not among the hosts that pictures may be fetched from")
        try:
            return look_up(host, port)
        except BadPicture as error:
            raise BadPicture(f"{error}: " + self._way_out("send the picture itself")) from None

    def _read(self, response: httpx.Response, url: str, in_time: Callable[[], None]) -> bytes:
        import httpx

        if response.status_code != httpx.codes.OK:
            raise BadPicture(f"{short(url)} cannot be fetched: the server answers {response.status_code}")
        data = bytearray()
        for chunk in response.iter_raw(65536):
            data += chunk
            if len(data) > self.limit_bytes:
                raise BadPicture(self._too_large(short(url)))
            in_time()
        return bytes(data)

    def _too_large(self, name: str) -> str:
        return f"{name} is larger than {self.limit_bytes:,} bytes: make it smaller"


def in_daemon_thread(work: Callable[[], T]) -> Future[T]:
    """What `work` will give, in a thread of its own, which nobody has to wait for: not even the end of the process."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="idefics-fetch", daemon=True).start()
    return outcome


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than fetching a picture: once is enough."""
    import httpx

    return httpx.create_ssl_context()
