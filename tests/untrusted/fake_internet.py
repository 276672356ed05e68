"""An internet on this machine: host names that lead where a test says, and two servers that count their requests.

Connections to a public address (as the `ipaddress` module says) reach the public server. Those to any other address,
which would be this machine or a neighbour, reach the internal one: no URL of an untrusted sender may ever get there.
"""

import contextlib
import ipaddress
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from processing.pictures_tiny import encode_picture, random_picture

PUBLIC_ADDRESSES = ("93.184.216.34", "93.184.216.35", "2606:2800:220:1:248:1893:25c8:1946")
PNG = encode_picture(random_picture("RGB"), "PNG")


CLOUD_METADATA_ADDRESS = "168.63.129.16"  # Azure's: a public number, reachable from inside only


def is_public_address(address):
    """Whether the `ipaddress` module calls an address public, and no cloud keeps its machines' secrets there."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_global and not parsed.is_multicast and address != CLOUD_METADATA_ADDRESS


class PageHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.hits.append(self.path)
        self.server.headers.append(dict(self.headers.items()))
        page = self.server.pages.get(self.path)
        if isinstance(page, bytes):
            self.send_answer(200, page)
        elif isinstance(page, str):
            self.send_answer(302, b"", **{"Location": page, "Set-Cookie": "session=secret"})
        elif page is not None:
            with contextlib.suppress(OSError):  # the client has closed the connection
                page(self)
            self.close_connection = True
        else:
            self.send_answer(404, b"no")

    def send_answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_slowly(self, chunk, pause, max_chunks=2000):
        for _ in range(max_chunks):
            if self.server.closing.is_set():
                return
            self.wfile.write(chunk)
            self.wfile.flush()
            self.server.sent += len(chunk)
            if pause:
                time.sleep(pause)

    def log_message(self, *args):
        pass


class CountingServer(ThreadingHTTPServer):
    daemon_threads = False  # closing the server waits for them
    allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), PageHandler)
        self.hits, self.headers, self.pages, self.sent = [], [], {}, 0
        self.closing = threading.Event()

    def handle_error(self, request, client_address):
        pass  # the client has closed the connection


@contextlib.contextmanager
def run_server():
    with CountingServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


class FakeInternet:
    """Replaces name resolution and connections of this process.

    Attributes:
        addresses_by_host: host name -> its addresses; or a list of such answers, one for each resolution.
        public_server, internal_server: the two servers.
        resolved_hosts, connected_addresses: the host names resolved and the (address, port) connected to, in order.
    """

    def __init__(self, monkeypatch, outer, inner):
        self.public_server, self.internal_server = outer, inner
        self.addresses_by_host = {
            "photos.example.com": [PUBLIC_ADDRESSES[0]],
            "other.example.org": [PUBLIC_ADDRESSES[1]],
        }
        self.resolved_hosts, self.connected_addresses = [], []
        outer.pages = {"/cat.png": PNG}
        inner.pages = {"/cat.png": PNG, "/latest/meta-data": b"secret"}
        monkeypatch.setattr(socket, "getaddrinfo", self.fake_getaddrinfo)
        monkeypatch.setattr(socket, "create_connection", self.fake_create_connection)

    def fake_getaddrinfo(self, host, port, *_, **__):
        self.resolved_hosts.append(host)
        addresses = self.addresses_by_host.get(host, [])
        if addresses and isinstance(addresses[0], list):
            addresses = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        elif not addresses:
            try:  # what a system's resolver makes of 127.1, 2130706433, 0x7f.1 or 0177.0.0.1
                addresses = [socket.inet_ntoa(socket.inet_aton(host))]
            except (OSError, TypeError, UnicodeError):
                if host not in ("localhost", "localhost."):
                    raise socket.gaierror("no such host") from None
                addresses = ["127.0.0.1"]
        return [(None, None, None, "", (address, port)) for address in addresses]

    def fake_create_connection(self, address, timeout=None, **_):
        host, port = address[:2]
        if not host.replace(".", "").isdigit() and ":" not in host:
            host = self.fake_getaddrinfo(host, port)[0][4][0]
        self.connected_addresses.append((host, port))
        server = self.public_server if is_public_address(host) else self.internal_server
        connection = socket.socket()
        connection.settimeout(timeout)
        connection.connect(("127.0.0.1", server.server_port))
        return connection
