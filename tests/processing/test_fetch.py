"""`Fetcher` against a server on this machine; attacks by untrusted senders are in tests/untrusted."""

import base64
import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from idefics.errors import BadPicture, BadSetting
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher, is_url
from idefics.processing.image_processor import open_picture

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


class PageHandler(BaseHTTPRequestHandler):
    hosts: ClassVar = []

    def do_GET(self):
        self.hosts.append(self.headers["Host"])
        match self.path.strip("/").split("/"):
            case ["picture"]:
                self.send_answer(200, PNG)
            case ["zeros", count]:
                self.send_answer(200, bytes(int(count)))
            case ["text"]:
                self.send_answer(200, b"hello")
            case ["redirect", count]:
                self.send_answer(
                    302, b"", Location=f"/redirect/{int(count) - 1}" if int(count) > 1 else "/picture"
                )
            case ["loop"]:
                self.send_answer(302, b"", Location="/loop")
            case ["to-file"]:
                self.send_answer(302, b"", Location="file:///etc/hostname")
            case ["endless"]:
                self.send_response(200)
                self.end_headers()
                self.send_slowly(b"x" * 65536, 0)
            case ["bomb"]:
                self.send_answer(200, gzip.compress(bytes(10_000_000)), **{"Content-Encoding": "gzip"})
            case ["slow-body"]:
                self.send_response(200)
                self.end_headers()
                self.send_slowly(b"x", 0.05)
            case ["slow-head"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                self.send_slowly(b"x", 0.05)
            case _:
                self.send_answer(404, b"no")

    def send_answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_slowly(self, chunk, pause):
        try:
            for _ in range(400):
                self.wfile.write(chunk)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass  # the client has had enough

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), PageHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server_url(server):
    PageHandler.hosts.clear()
    return f"http://127.0.0.1:{server.server_port}"


def test_any_url_is_fetched(server_url):
    assert Fetcher(policy="any").get(f"{server_url}/picture") == PNG
    assert open_picture(Picture(f"{server_url}/picture"), Fetcher()).size == (1, 1)


def test_the_policy_off(server_url):
    with pytest.raises(BadPicture, match=r'remote_images="any".*--remote-images'):
        Fetcher(policy="off").get(f"{server_url}/picture")
    assert PageHandler.hosts == []


def fake_host_names(monkeypatch, table):
    """Replaces name resolution; maps a host name to its addresses."""

    def look_up(host, port, *_, **__):
        if host not in table:
            raise OSError("unknown")
        return [(None, None, None, "", (address, port)) for address in table[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_redirects(server_url):
    assert Fetcher().get(f"{server_url}/redirect/3") == PNG
    for path in ("redirect/4", "loop"):
        with pytest.raises(BadPicture, match="redirects more than 3 times"):
            Fetcher().get(f"{server_url}/{path}")
    with pytest.raises(BadPicture, match=r"file:.*hostname is not an http\(s\) URL"):
        Fetcher().get(f"{server_url}/to-file")


def test_too_many_bytes(server_url):
    with pytest.raises(BadPicture, match="larger than 100,000 bytes"):
        Fetcher(max_bytes=100_000).get(f"{server_url}/endless")


def test_compressed_bodies_are_not_decompressed(server_url):
    assert len(Fetcher(max_bytes=100_000).get(f"{server_url}/bomb")) < 20_000


@pytest.mark.parametrize("path", ["slow-body", "slow-head"])
def test_a_slow_response_times_out(server_url, path):
    began = time.monotonic()
    with pytest.raises(BadPicture, match=r"took longer than 0\.4 seconds"):
        Fetcher(timeout=0.4).get(f"{server_url}/{path}")
    assert time.monotonic() - began < 10


def test_errors_of_the_server(server_url):
    with pytest.raises(BadPicture, match="/nothing cannot be fetched: the server answers 404"):
        Fetcher().get(f"{server_url}/nothing")


def test_a_refused_connection():
    with pytest.raises(BadPicture, match=r"http://127\.0\.0\.1:9/x cannot be fetched"):
        Fetcher(timeout=2).get("http://127.0.0.1:9/x")


def test_not_a_picture(server_url):
    with pytest.raises(BadPicture, match="/text is not a picture"):
        open_picture(Picture(f"{server_url}/text"), Fetcher())


@pytest.mark.parametrize(
    "url", ["http://", "http://[bad", "http://a b/", "ftp://example.com/a.jpg", "http://exa\0mple/"]
)
def test_malformed_addresses(url, monkeypatch):
    fake_host_names(monkeypatch, {})
    for policy in ("any", "public"):
        with pytest.raises(BadPicture) as error:
            Fetcher(policy=policy).get(url)
        assert "\n" not in str(error.value)


def test_data_uris_need_no_network():
    fetcher = Fetcher(policy="off", max_bytes=1000)
    encoded = base64.b64encode(PNG).decode()
    assert fetcher.get(f"data:image/png;base64,{encoded}") == PNG
    assert fetcher.get("data:image/svg+xml,%3Csvg/%3E") == b"<svg/>"
    for uri in ("data:image/png;base64", "data:image/png;base64,A", "data:image/png;base64,é"):
        with pytest.raises(BadPicture, match="a data URI"):
            fetcher.get(uri)
    for size in (1001, 10_000):
        with pytest.raises(BadPicture, match="a data URI is larger than 1,000 bytes"):
            fetcher.get("data:image/png;base64," + base64.b64encode(bytes(size)).decode())


@pytest.mark.parametrize("size", [256, 257, 258])  # padded by 2, by 1 and not at all
def test_base64_as_people_send_it(size):
    """White space, line breaks, missing padding and the URL-safe alphabet are read; invalid base64 is not."""
    data = bytes(index * 7 % 256 for index in range(size))
    plain = base64.b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()
    safe = base64.urlsafe_b64encode(data).decode()
    assert "+" in plain and "/" in plain and "-" in safe and "_" in safe
    for text in (
        plain,
        wrapped,
        safe,
        plain.rstrip("="),
        safe.rstrip("="),
        f" {plain}\n",
        plain.replace("+", "%2B"),
    ):
        assert Fetcher(policy="off").get(f"data:image/png;base64,{text}") == data
    for wrong in (plain + "!", plain[:40] + "=" + plain[40:], "A", plain + "é"):
        with pytest.raises(BadPicture, match="a data URI is not valid base64"):
            Fetcher(policy="off").get(f"data:image/png;base64,{wrong}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.com/a.jpg", True),
        ("HTTP://example.com", True),
        ("data:image/png;base64,AAAA", True),
        ("data:;base64,AAAA", True),
        (f"data:image/png;base64,{'A' * 76}\r\n{'B' * 76}\n\t{'C' * 20}==\n", True),
        (f"data:image/png;base64,\n{'A' * 76} {'B' * 20}", True),
        (f"data:image/jpeg;base64,{'A' * 76} What is this", False),
        (f"data:image/jpeg,{'A' * 76} {'B' * 76}", False),
        (f"data:image/jpeg;base64,{'A' * 76}. {'B' * 20}", False),
        ("data:1,2,3", False),
        ("data: none, here", False),
        ("see http://example.com", False),
        ("http://example.com is a site", False),
        ("ftp://example.com/a.jpg", False),
        ("photo.jpg", False),
    ],
)
def test_is_url(text, expected):
    assert is_url(text) is expected


def test_unknown_policy():
    with pytest.raises(BadSetting, match="give any, public or off"):
        Fetcher(policy="maybe")


@pytest.mark.parametrize("limit", [1, 100, 65535, 65536, 70_000, 200_000])
def test_exactly_the_limit_is_accepted_and_one_byte_more_refused(server_url, limit):
    fetcher = Fetcher(policy="any", max_bytes=limit)
    said = f"larger than {limit:,} bytes"
    assert fetcher.get(f"{server_url}/zeros/{limit}") == bytes(limit)
    with pytest.raises(BadPicture, match=said):
        fetcher.get(f"{server_url}/zeros/{limit + 1}")
    for write in (
        lambda data: ";base64," + base64.b64encode(data).decode(),
        lambda data: "," + "a" * len(data),
    ):
        assert len(fetcher.get("data:image/png" + write(bytes(limit)))) == limit
        with pytest.raises(BadPicture, match=said):
            fetcher.get("data:image/png" + write(bytes(limit + 1)))
