"""Fetches remote pictures and videos: http(s) URLs under a policy, and data URIs. Nothing else uses the network.

Returns bytes; does not decode pictures.
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
# (RFC 4648, 4 and 5). The patterns never backtrack: a text is read once, from left to right.
BASE64_PATTERN = r"\s*+(?:[A-Za-z0-9+/_%-]{16,}+\s++)*+[A-Za-z0-9+/_%-]*+=*+\s*+"
log = logging.getLogger(__name__)
REMOTE_PATTERN = re.compile(
    rf"https?://\S+|data:[^\s,;/]*[;/][^\s,]*(?:,\S*|(?<=;base64),{BASE64_PATTERN})", re.IGNORECASE
)
MAX_REDIRECTS = 3

BASE64_URI_PREFIX = "data:;base64,"  # put before base64 that is given without a data URI


def is_url(text: str) -> bool:
    """Whether a text as a whole is an http(s) URL or a data URI."""
    return REMOTE_PATTERN.fullmatch(text) is not None


def is_data_uri(text: str) -> bool:
    """Whether a URL is a data URI, which holds its content itself and needs no network."""
    return text[:5].lower() == "data:"


def normalize_source_text(text: str) -> str:
    """Normalizes a text that may be a picture source; a text that is neither base64 nor a URL is returned unchanged.

    Base64 of a picture file becomes a data URI, and a URL loses the white space around it.
    """
    stripped = text.strip()
    if is_url(stripped):
        return stripped
    beginning = decode_base64("".join(text[:512].split())[:64].encode("utf-8", "replace"))
    if len(text) > 64 and beginning and detect_image_format(beginning) is not None:
        return f"{BASE64_URI_PREFIX}{stripped}"
    return text


def name_for_message(name: str) -> str:
    """A URL or path as error messages show it: one line of at most 100 characters, without the content of data URIs."""
    if is_data_uri(name):
        return "the base64 of a picture" if name.startswith(BASE64_URI_PREFIX) else "a data URI"
    name = name if len(name) <= 100 else f"{name[:97]}..."
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def decode_base64(text: bytes) -> bytes | None:
    """Decoded base64, or None where the text is not base64.

    White space is ignored, padding may be missing, and both alphabets are read (RFC 4648, 4 and 5).
    """
    plain = b"".join(text.split()).rstrip(b"=").translate(STANDARD_BASE64_TABLE)
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


STANDARD_BASE64_TABLE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Fetches remote pictures and videos as far as its policy allows, and says whether their sender is trusted.

    Attributes:
        policy: "any": every URL; "public": hosts on the public internet only, for URLs of untrusted senders; a list of
            host names with commas between them ("images.example.com,*.example.org"): these, and only on the public
            internet; "off": none. Data URIs need no network and are always read.
        max_bytes: the largest size of a picture or video, in bytes.
        timeout: seconds for one URL, name resolution and redirects included.
        untrusted: whether everything comes from untrusted senders: then no file of this machine is opened, and
            decoding is bounded as in `processing.untrusted`.
        decode_slots: held while a picture is decoded and preprocessed, not while it is fetched; a semaphore bounds how
            many are decoded at the same time.
        fetch_slots: held while a URL is fetched; a semaphore bounds how many are fetched at the same time.
        on_opened: called after each picture or video of a prompt is opened and preprocessed; None: nothing is called.
    """

    policy: UrlPolicy = "any"
    max_bytes: int = 20 * 2**20
    timeout: float = 10.0
    untrusted: bool = False
    decode_slots: AbstractContextManager[Any] = field(default_factory=nullcontext)
    fetch_slots: AbstractContextManager[Any] = field(default_factory=nullcontext)
    on_opened: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        parse_allowed_hosts(self.policy)

    def is_untrusted(self, source: object) -> bool:
        """Whether the sender of a picture is untrusted. Under the policy "any" every URL is the caller's own."""
        return self.untrusted or (self.policy != "any" and isinstance(source, str) and is_url(source))

    def get(self, url: str) -> bytes:
        """The content of an http(s) URL or a data URI.

        Raises:
            BadPicture: refused by the policy, unreachable, too large or too slow.
        """
        if is_data_uri(url):
            return self._decode_data_uri(url)
        if self.policy == "off":
            raise BadPicture(
                f"{name_for_message(url)} may not be fetched, remote pictures are off: "
                + self._advice_with_policy_hint("download it first and send the picture itself")
            )
        import httpx

        began = time.monotonic()
        try:
            with self.fetch_slots:
                data = self._fetch_with_timeout(url)
            log.debug("fetched %d bytes in %.2f s", len(data), time.monotonic() - began)
            return data
        except BadPicture:
            raise
        except (httpx.TimeoutException, TimeoutError):
            raise BadPicture(
                f"{name_for_message(url)} took longer than {self.timeout:g} seconds: download it first"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
            # ImportError and ValueError: the environment names a proxy that httpx cannot use.
            why = error if self.policy == "any" else "its host does not answer as it should"
            raise BadPicture(f"{name_for_message(url)} cannot be fetched: {why}") from None

    def _advice_with_policy_hint(self, advice: str) -> str:
        """The advice of an error message, with a hint how to change the policy unless the sender is untrusted."""
        return (
            advice
            if self.untrusted
            else f'{advice}, or allow it with remote_images="any" (--remote-images any)'
        )

    def _decode_data_uri(self, uri: str) -> bytes:
        """The content of a data URI of at most `max_bytes` bytes."""
        head, comma, body = uri.partition(",")
        if not comma:
            raise BadPicture("a data URI has no comma: it reads data:image/png;base64,...")
        if len(body) > 4 * self.max_bytes:  # percent signs take 3 characters a byte, base64 4/3
            raise BadPicture(self._too_large_message("a data URI"))
        data = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            decoded = decode_base64(data)
            if decoded is None:
                expected_form = (
                    "" if uri.startswith(BASE64_URI_PREFIX) else ": it reads data:image/png;base64,..."
                )
                raise BadPicture(
                    f"{name_for_message(uri)} is not valid base64{expected_form or ': send it whole and unchanged'}"
                )
            data = decoded
        if len(data) > self.max_bytes:
            raise BadPicture(self._too_large_message("a data URI"))
        return data

    def _fetch_with_timeout(self, url: str) -> bytes:
        """The content of an http(s) URL, fetched in a thread that is abandoned after `timeout` seconds."""
        import httpx

        deadline = time.monotonic() + self.timeout
        with httpx.Client(
            verify=_ssl_context(),
            # Proxies and passwords of the environment are for URLs of the owner of this machine only.
            trust_env=self.policy == "any",
            timeout=self.timeout,
        ) as client:  # closed at the deadline, which also stops the thread
            # Name resolution cannot be interrupted, only abandoned.
            return run_in_daemon_thread(lambda: self._follow_redirects(client, url, deadline)).result(
                self.timeout
            )

    def _follow_redirects(self, client: httpx.Client, url: str, deadline: float) -> bytes:
        """Requests a URL and its redirects, each checked against the policy; `deadline` is in `time.monotonic`."""
        import httpx

        def check_deadline(*_: object) -> None:
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("deadline")

        current_url, raw_url = httpx.URL(url), url
        for _ in range(MAX_REDIRECTS + 1):
            check_deadline()
            if current_url.scheme not in PORT_BY_SCHEME or not current_url.host:
                raise BadPicture(f"{name_for_message(str(current_url))} is not an http(s) URL")
            request_url = current_url
            extensions: dict[str, Any] = {"trace": check_deadline}
            # Uncompressed, as `max_bytes` counts received bytes.
            headers = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}
            if self.policy != "any":
                host = validate_url_host(current_url, raw_url)
                request_url = current_url.copy_with(
                    host=self._resolve_allowed_host(host, PORT_BY_SCHEME[current_url.scheme])
                )
                headers["Host"] = current_url.netloc.decode()
                extensions["sni_hostname"] = host
                client.cookies.clear()
            with client.stream("GET", request_url, headers=headers, extensions=extensions) as response:
                if not response.has_redirect_location:
                    return self._read_response(response, url, check_deadline)
                # The body is not read, so the connection, which was opened for this host, is not reused.
                raw_url = response.headers["location"]
                current_url = current_url.join(raw_url)
        raise BadPicture(
            f"{name_for_message(url)} redirects more than {MAX_REDIRECTS} times: download it first"
        )

    def _resolve_allowed_host(self, host: str, port: int) -> str:
        """The IP address to connect to for a host that the policy allows; raises BadPicture for any other host.

        A listed host must be on the public internet too, since the owner of a name can point it at any address.
        """
        hosts = parse_allowed_hosts(self.policy)
        if hosts and not is_allowed_host(host, hosts):
            raise BadPicture(f"{host} is not among the hosts that pictures may be fetched from")
        try:
            return resolve_public_address(host, port)
        except BadPicture as error:
            raise BadPicture(
                f"{error}: " + self._advice_with_policy_hint("send the picture itself")
            ) from None

    def _read_response(self, response: httpx.Response, url: str, check_deadline: Callable[[], None]) -> bytes:
        """The body of a response with status 200, of at most `max_bytes` bytes."""
        import httpx

        if response.status_code != httpx.codes.OK:
            raise BadPicture(
                f"{name_for_message(url)} cannot be fetched: the server answers {response.status_code}"
            )
        data = bytearray()
        for chunk in response.iter_raw(65536):
            data += chunk
            if len(data) > self.max_bytes:
                raise BadPicture(self._too_large_message(name_for_message(url)))
            check_deadline()
        return bytes(data)

    def _too_large_message(self, name: str) -> str:
        """The message about a picture or video of more than `max_bytes` bytes."""
        return f"{name} is larger than {self.max_bytes:,} bytes: make it smaller"


def run_in_daemon_thread(work: Callable[[], T]) -> Future[T]:
    """Runs `work` in a new thread that does not keep the process alive; returns the future of its result."""
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
    """The default SSL context; cached, as reading the certificates takes longer than fetching a picture."""
    import httpx

    return httpx.create_ssl_context()
