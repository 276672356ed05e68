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
from idefics.formats import detect_image_format
from idefics.processing.url_policy import (
    PORT_BY_SCHEME,
    UrlPolicy,
    is_allowed_host,
    parse_allowed_hosts,
    resolve_public_address,
    validate_url_host,
)

if TYPE_CHECKING:
    import httpx

    T = TypeVar("T")

# Base64 may be broken into lines (RFC 2045, 6.8), which are longer than words that may follow, and has two alphabets
# (RFC 4648, 4 and 5). Both patterns are read once, from left to right.
BASE64_PATTERN = r"\s*+(?:[A-Za-z0-9+/_%-]{16,}+\s++)*+[A-Za-z0-9+/_%-]*+=*+\s*+"
log = logging.getLogger(__name__)

REMOTE_PATTERN = re.compile(
    rf"https?://\S+|data:[^\s,;/]*[;/][^\s,]*(?:,\S*|(?<=;base64),{BASE64_PATTERN})", re.IGNORECASE
)
MAX_REDIRECTS = 3

BASE64_URI_PREFIX = "data:;base64,"  # what base64 that was given without a data URI is given


def is_url(text: str) -> bool:
    """Whether the whole text is an http(s) address or a data URI."""
    return REMOTE_PATTERN.fullmatch(text) is not None


def is_data_uri(text: str) -> bool:
    """Whether a remote picture stands in its address itself, and so needs no network."""
    return text[:5].lower() == "data:"


def normalize_url(text: str) -> str:
    """Base64 of a picture file as a data URI, an address without white space around it, anything else as it is."""
    stripped = text.strip()
    if is_url(stripped):
        return stripped
    beginning = decode_base64("".join(text[:512].split())[:64].encode("utf-8", "replace"))
    if len(text) > 64 and beginning and detect_image_format(beginning) is not None:
        return f"{BASE64_URI_PREFIX}{stripped}"
    return text


def shorten_url(name: str) -> str:
    """An address or path for an error message: one line, not too long."""
    if is_data_uri(name):
        return "the base64 of a picture" if name.startswith(BASE64_URI_PREFIX) else "a data URI"
    name = name if len(name) <= 100 else f"{name[:97]}..."
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def decode_base64(text: bytes) -> bytes | None:
    """The bytes that base64 stands for, or None where it is none.

    White space is left out, padding may be missing, and both alphabets are read (RFC 4648, 4 and 5).
    """
    plain = b"".join(text.split()).rstrip(b"=").translate(STANDARD_BASE64_TABLE)
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


STANDARD_BASE64_TABLE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Gets remote pictures and videos, as far as its policy allows, and says whom it gets them for.

    Attributes:
        policy: "any" address that the caller names; "public" hosts of the open internet only, for data from
            strangers; names of hosts with commas between them ("images.example.com,*.example.org"), and those only on
            the open internet; "off" none at all. Data URIs need no network and are always read.
        max_bytes: the most that one of them may weigh.
        timeout: seconds for one of them, names' look-ups and redirects included.
        untrusted: whether all pictures come from strangers, however they come: then no file of this machine is opened,
            and what is opened is bounded as `processing.strangers` says.
        decode_slots: held while a picture is decoded and prepared, not while it is fetched: a semaphore bounds how many are at
            once.
        fetch_slots: held while one is fetched: a semaphore bounds how many are at once.
    """

    policy: UrlPolicy = "any"
    max_bytes: int = 20 * 2**20
    timeout: float = 10.0
    untrusted: bool = False
    decode_slots: AbstractContextManager[Any] = field(default_factory=nullcontext)
    fetch_slots: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        parse_allowed_hosts(self.policy)

    def is_untrusted(self, source: object) -> bool:
        """Whether a picture is a stranger's: the owner's own are files and objects, and under "any" all of them."""
        return self.untrusted or (self.policy != "any" and isinstance(source, str) and is_url(source))

    def get(self, url: str) -> bytes:
        """The bytes behind an http(s) address or a data URI.

        Raises:
            BadPicture: refused by the policy, unreachable, too large or too slow.
        """
        if is_data_uri(url):
            return self._decode_data_uri(url)
        if self.policy == "off":
            raise BadPicture(
                f"{shorten_url(url)} may not be fetched, remote pictures are off: "
                + self._hint("download it first and send the picture itself")
            )
        import httpx

        began = time.monotonic()
        try:
            data = self._fetch_with_timeout(url)
            log.debug("fetched %d bytes in %.2f s", len(data), time.monotonic() - began)
            return data
        except BadPicture:
            raise
        except (httpx.TimeoutException, TimeoutError):
            raise BadPicture(
                f"{shorten_url(url)} took longer than {self.timeout:g} seconds: download it first"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
            # The last two: the environment names a proxy that httpx cannot use.
            why = error if self.policy == "any" else "its host does not answer as it should"
            raise BadPicture(f"{shorten_url(url)} cannot be fetched: {why}") from None

    def _hint(self, advice: str) -> str:
        """What can be done about a refusal, by a stranger or by the owner."""
        return (
            advice
            if self.untrusted
            else f'{advice}, or allow it with remote_images="any" (--remote-images any)'
        )

    def _decode_data_uri(self, uri: str) -> bytes:
        head, comma, body = uri.partition(",")
        if not comma:
            raise BadPicture("a data URI has no comma: it reads data:image/png;base64,...")
        if len(body) > 4 * self.max_bytes:  # base64 takes 4/3, percent signs 3: not worth decoding
            raise BadPicture(self._too_large_message("a data URI"))
        data = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            decoded = decode_base64(data)
            if decoded is None:
                expected_form = (
                    "" if uri.startswith(BASE64_URI_PREFIX) else ": it reads data:image/png;base64,..."
                )
                raise BadPicture(
                    f"{shorten_url(uri)} is not valid base64{expected_form or ': send it whole and unchanged'}"
                )
            data = decoded
        if len(data) > self.max_bytes:
            raise BadPicture(self._too_large_message("a data URI"))
        return data

    def _fetch_with_timeout(self, url: str) -> bytes:
        import httpx

        deadline = time.monotonic() + self.timeout
        with httpx.Client(
            verify=_ssl_context(),
            # Proxies and passwords of the environment are the owner's, for the owner's own addresses.
            trust_env=self.policy == "any",
            timeout=self.timeout,
        ) as client:  # closed at the deadline, which also ends the thread's reading
            # The look-up of a name cannot be interrupted, only left.
            return run_in_daemon_thread(lambda: self._follow_redirects(client, url, deadline)).result(
                self.timeout
            )

    def _follow_redirects(self, client: httpx.Client, url: str, deadline: float) -> bytes:
        import httpx

        def check_deadline(*_: object) -> None:
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("deadline")

        current_url, raw_url = httpx.URL(url), url
        for _ in range(MAX_REDIRECTS + 1):
            check_deadline()
            if current_url.scheme not in PORT_BY_SCHEME or not current_url.host:
                raise BadPicture(f"{shorten_url(str(current_url))} is not an http(s) address")
            request_url = current_url
            extensions: dict[str, Any] = {"trace": check_deadline}
            # Not compressed: the cap counts what arrives.
            headers = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}
            if self.policy != "any":
                host = validate_url_host(current_url, raw_url)
                request_url = current_url.copy_with(
                    host=self._resolve_host(host, PORT_BY_SCHEME[current_url.scheme])
                )
                headers["Host"] = current_url.netloc.decode()
                extensions["sni_hostname"] = host
                client.cookies.clear()
            with client.stream("GET", request_url, headers=headers, extensions=extensions) as response:
                if not response.has_redirect_location:
                    return self._read_response(response, url, check_deadline)
                # Its body is not read, so its connection, opened for this name, serves no other.
                raw_url = response.headers["location"]
                current_url = current_url.join(raw_url)
        raise BadPicture(f"{shorten_url(url)} redirects more than {MAX_REDIRECTS} times: download it first")

    def _resolve_host(self, host: str, port: int) -> str:
        """The address that a host is connected to by.

        A host of a list is looked up as any other: who lists a name does not say where its owner may let it lead.
        """
        hosts = parse_allowed_hosts(self.policy)
        if hosts and not is_allowed_host(host, hosts):
            raise BadPicture(f"{host} is not among the hosts that pictures may be fetched from")
        try:
            return resolve_public_address(host, port)
        except BadPicture as error:
            raise BadPicture(f"{error}: " + self._hint("send the picture itself")) from None

    def _read_response(self, response: httpx.Response, url: str, check_deadline: Callable[[], None]) -> bytes:
        import httpx

        if response.status_code != httpx.codes.OK:
            raise BadPicture(
                f"{shorten_url(url)} cannot be fetched: the server answers {response.status_code}"
            )
        data = bytearray()
        for chunk in response.iter_raw(65536):
            data += chunk
            if len(data) > self.max_bytes:
                raise BadPicture(self._too_large_message(shorten_url(url)))
            check_deadline()
        return bytes(data)

    def _too_large_message(self, name: str) -> str:
        return f"{name} is larger than {self.max_bytes:,} bytes: make it smaller"


def run_in_daemon_thread(work: Callable[[], T]) -> Future[T]:
    """What `work` will give, in a thread of its own, which nobody has to wait for: not even the end of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="idefics-fetch", daemon=True).start()
    return future


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    """Reading the certificates takes longer than fetching a picture: once is enough."""
    import httpx

    return httpx.create_ssl_context()
