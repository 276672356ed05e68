"""URLs of untrusted senders: every known way of server-side request forgery, and none reaches the internal host.

Tests carry the names of the holes that they keep shut.
"""

import gzip
import ipaddress
import socket
import ssl
import threading
import time

import pytest

from idefics.errors import BadPicture, BadSetting
from idefics.processing import fetch, url_policy
from idefics.processing.fetch import Fetcher
from idefics.processing.url_policy import is_allowed_host, is_public_ip, parse_allowed_hosts
from untrusted.fake_internet import PNG, PUBLIC_ADDRESSES

PUBLIC_FETCHER = Fetcher(policy="public", untrusted=True)
ALLOWLIST_FETCHER = Fetcher(policy="photos.example.com,*.example.org", untrusted=True)


def assert_refused(internet, url, fetcher=PUBLIC_FETCHER, match=None):
    """Asserts that the URL is refused, and that no internal host got a request or a connection."""
    with pytest.raises(BadPicture, match=match) as error:
        fetcher.get(url)
    assert internet.internal_server.hits == []
    assert [address for address, _ in internet.connected_addresses if address not in PUBLIC_ADDRESSES] == []
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_public_host(fake_internet):
    assert PUBLIC_FETCHER.get("http://photos.example.com/cat.png") == PNG
    assert ALLOWLIST_FETCHER.get("http://photos.example.com/cat.png") == PNG
    assert fake_internet.connected_addresses == [(PUBLIC_ADDRESSES[0], 80)] * 2


def test_a_public_address_of_either_kind(fake_internet):
    fake_internet.addresses_by_host[PUBLIC_ADDRESSES[2]] = [PUBLIC_ADDRESSES[2]]
    for host in ("93.184.216.34", f"[{PUBLIC_ADDRESSES[2]}]"):
        assert PUBLIC_FETCHER.get(f"http://{host}/cat.png") == PNG
    assert [headers["Host"] for headers in fake_internet.public_server.headers] == [
        "93.184.216.34",
        f"[{PUBLIC_ADDRESSES[2]}]",
    ]


INTERNAL_ADDRESS_BY_NAME = {
    "this machine": "127.0.0.1",
    "this machine by another number": "127.8.8.8",
    "any": "0.0.0.0",
    "private ten": "10.1.2.3",
    "private 172": "172.16.0.1",
    "private 192": "192.168.1.1",
    "link-local": "169.254.7.7",
    "secrets of a cloud": "169.254.169.254",
    "secrets of Alibaba, CGNAT": "100.100.100.200",
    "CGNAT": "100.64.0.1",
    "secrets of Azure": "168.63.129.16",
    "protocols": "192.0.0.192",
    "documentation": "203.0.113.7",
    "benchmarks": "198.18.0.1",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "loopback 6": "::1",
    "any 6": "::",
    "link-local 6": "fe80::1",
    "site-local 6": "fec0::1",
    "private 6": "fd00:ec2::254",
    "multicast 6": "ff02::1",
    "documentation 6": "2001:db8::1",
    "IPv4-mapped": "::ffff:127.0.0.1",
    "IPv4-mapped, of a public address": "::ffff:93.184.216.34",
    "IPv4-compatible": "::127.0.0.1",
    "IPv4-translated": "::ffff:0:127.0.0.1",
    "6to4": "2002:7f00:1::",
    "NAT64": "64:ff9b::7f00:1",
    "NAT64, a provider's own": "64:ff9b:1::7f00:1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "ORCHID": "2001:20::1",
    "discard": "100::1",
    "segment routing": "5f00::1",
}


# IANA's IPv4 and IPv6 Special-Purpose Address Registries and multicast, written out here a second time: a network that
# is struck from the product's list shall be missed. Not globally reachable, or leading elsewhere by design.
SPECIAL_PURPOSE_RANGES = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24
203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
::/128 ::1/128 ::/96 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23
2001::/32 2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28
2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
"""
# Whole networks are closed on their two sides, these are the neighbours that are open.
PUBLIC_NEIGHBORS = """
1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17
169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.31.195.255 192.31.197.0
192.52.192.255 192.52.194.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 192.175.47.255 192.175.49.0
198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
2000:: 2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 2003:: 2620:4f:7fff:ffff:ffff:ffff:ffff:ffff
2620:4f:8001:: 3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff
"""


@pytest.mark.parametrize("network", SPECIAL_PURPOSE_RANGES.split())
def test_every_special_network_is_refused(network):
    whole = ipaddress.ip_network(network)
    for place in {0, 1, whole.num_addresses // 2, whole.num_addresses - 1}:
        if place < whole.num_addresses:
            assert not is_public_ip(str(whole[place])), whole[place]


@pytest.mark.parametrize("address", PUBLIC_NEIGHBORS.split())
def test_addresses_next_to_special_networks_are_public(address):
    assert is_public_ip(address)


@pytest.mark.parametrize("policy", ["public", "inside.example.com"])
@pytest.mark.parametrize("address", INTERNAL_ADDRESS_BY_NAME.values(), ids=INTERNAL_ADDRESS_BY_NAME)
def test_ghsa_3f6c_7fw2_ppm4_a_name_with_an_internal_address(address, policy, fake_internet):
    """Server-side request forgery. A listed host may resolve to an internal address too, and is refused then."""
    fake_internet.addresses_by_host["inside.example.com"] = [address]
    said = assert_refused(
        fake_internet,
        "http://inside.example.com/cat.png",
        Fetcher(policy=policy, untrusted=True),
        "public internet",
    )
    assert address not in said, "the error reveals an address of the internal network"


@pytest.mark.parametrize("address", INTERNAL_ADDRESS_BY_NAME.values(), ids=INTERNAL_ADDRESS_BY_NAME)
def test_ghsa_3f6c_7fw2_ppm4_an_internal_address(address, fake_internet):
    host = f"[{address}]" if ":" in address else address
    fake_internet.addresses_by_host[address] = [address]
    assert_refused(fake_internet, f"http://{host}/cat.png", match="public internet")


def test_ghsa_3f6c_7fw2_ppm4_a_host_with_one_internal_address_is_refused(fake_internet):
    for order in (
        [PUBLIC_ADDRESSES[0], "10.0.0.1"],
        ["10.0.0.1", PUBLIC_ADDRESSES[0]],
        [PUBLIC_ADDRESSES[0], "::1"],
    ):
        fake_internet.addresses_by_host["mixed.example.com"] = order
        assert_refused(fake_internet, "http://mixed.example.com/cat.png", match="public internet")
    assert fake_internet.connected_addresses == []


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost.", "intranet", "db"),
        *("127.0.0.1.", "127.1", "127.0.1", "0", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1"),
        *("0177.0.0.1", "017700000001", "127.0.0.0x1", "127.0.0.01", "00127.0.0.1", "1.2.3.4.5"),
        *("[::1%25lo]", "[::1%lo]", "[fe80::1%25eth0]", "[2606:2800:220:1:248:1893:25c8:1946%25eth0]"),
        *("photos.example.com.", "photos..example.com", ".photos.example.com", "-photos.example.com"),
        *(
            "photos.example.com%00.evil.com",
            "photos.example.com%2eevil.com",
            "%31%32%37.0.0.1",
            "photos.example.c",
        ),
        *("photos.example.123", "photos.example.0x7f", "*.example.org", "{photos}.example.com"),
        *(
            "127。0。0。1",
            "１２７.0.0.1",
            "①②⑦.⓪.⓪.①",
            "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
            "photos。example.com",
            "phötos.example.com",
        ),
        *("photos.exam\u200bple.com", "xn--.example.com.", "photos.example.com\u3002"),
        "a" * 64 + ".example.com",
        "a." * 127 + "example.com",
    ],
)
def test_ghsa_3f6c_7fw2_ppm4_hosts_that_can_be_read_in_two_ways(host, fake_internet):
    """Short, whole-number, octal and hexadecimal hosts, zones, dots at ends, dots and digits of other scripts."""
    fake_internet.addresses_by_host.update(
        {"localhost": ["127.0.0.1"], "intranet": [PUBLIC_ADDRESSES[0]], "db": [PUBLIC_ADDRESSES[0]]}
    )
    fake_internet.addresses_by_host.update(
        {host.strip("[]"): [PUBLIC_ADDRESSES[0]]}
    )  # even where the name itself leads outside
    assert_refused(fake_internet, f"http://{host}/cat.png")
    assert fake_internet.connected_addresses == []


@pytest.mark.parametrize(
    "url",
    [
        "http://photos.example.com\\@127.0.0.1/cat.png",
        "http://127.0.0.1\\@photos.example.com/cat.png",
        "http://photos.example.com\\.evil.example.org/cat.png",
        "http://photos.example.com/..\\cat.png",
        "http:\\\\photos.example.com/cat.png",
        "http://\\photos.example.com/cat.png",
    ],
)
def test_cve_2026_24779_backslashes(url, fake_internet):
    """Some parsers take the backslash for the end of the host and others do not."""
    assert_refused(fake_internet, url)
    assert fake_internet.connected_addresses == []


def test_cve_2026_24779_what_is_checked_is_what_is_asked(fake_internet, monkeypatch):
    """The host that was checked is the one that is resolved and the one that is sent to the server."""
    checked = []
    validate = fetch.validate_url_host
    monkeypatch.setattr(fetch, "validate_url_host", lambda *a: checked.append(validate(*a)) or checked[-1])
    assert PUBLIC_FETCHER.get("HTTP://Photos.EXAMPLE.com:80/a/../cat.png#x") == PNG
    assert checked == fake_internet.resolved_hosts == ["photos.example.com"]
    assert [headers["Host"] for headers in fake_internet.public_server.headers] == ["photos.example.com:80"]
    assert fake_internet.public_server.hits == ["/cat.png"]


@pytest.mark.parametrize(
    "url",
    [
        "http://user@photos.example.com/cat.png",
        "http://user:word@photos.example.com/cat.png",
        "http://photos.example.com@127.0.0.1/cat.png",
        "http://127.0.0.1@photos.example.com/cat.png",
        "http://photos.example.com%40@127.0.0.1/",
    ],
)
def test_cve_2026_24779_users_in_addresses(url, fake_internet):
    assert_refused(fake_internet, url)
    assert fake_internet.connected_addresses == []


@pytest.mark.parametrize(
    "port", ["22", "8000", "443", "6379", "0", "65536", "-1", "80@127.0.0.1", "80:80", "٨٠"]
)
def test_unusual_ports(port, fake_internet):
    assert_refused(fake_internet, f"http://photos.example.com:{port}/cat.png")
    assert fake_internet.connected_addresses == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "FILE:/etc/hostname",
        "ftp://photos.example.com/a",
        "gopher://127.0.0.1/",
        "//x/y",
    ],
)
def test_other_schemes(url, fake_internet):
    for fetcher in (PUBLIC_FETCHER, ALLOWLIST_FETCHER, Fetcher()):
        assert_refused(fake_internet, url, fetcher)
        fake_internet.public_server.pages["/to"] = url
        with pytest.raises(BadPicture):
            fetcher.get("http://photos.example.com/to")
    assert fake_internet.internal_server.hits == []


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/latest/meta-data",
        "http://169.254.169.254/latest/meta-data",
        "http://inside.example.com/latest/meta-data",
        "//127.0.0.1/latest/meta-data",
        "http://[::ffff:a9fe:a9fe]/latest/meta-data",
        "http://2130706433/latest/meta-data",
        "http://photos.example.com:8000/cat.png",
        "http://photos.example.com\\@127.0.0.1/latest/meta-data",
        "http://user@photos.example.com/cat.png",
    ],
)
@pytest.mark.parametrize("hops", [0, 1, 2])
def test_cve_2026_33626_a_redirect_to_an_internal_address(target, hops, fake_internet):
    fake_internet.addresses_by_host["inside.example.com"] = ["10.0.0.1"]
    chain = [f"/hop{n}" for n in range(hops + 1)]
    fake_internet.public_server.pages |= dict(zip(chain, [*chain[1:], target], strict=True))
    assert_refused(fake_internet, "http://photos.example.com/hop0")
    assert fake_internet.public_server.hits == chain, "the last hop was asked, and its answer not followed"


def test_cve_2026_33626_a_redirect_that_leaves_the_list(fake_internet):
    fake_internet.addresses_by_host["evil.example.net"] = [PUBLIC_ADDRESSES[1]]
    fake_internet.public_server.pages |= {
        "/out": "http://evil.example.net/cat.png",
        "/in": "http://other.example.org/cat.png",
    }
    assert_refused(fake_internet, "http://photos.example.com/out", ALLOWLIST_FETCHER, "not among the hosts")
    assert fake_internet.resolved_hosts == ["photos.example.com"], (
        "the name of a refused host is not even looked up"
    )
    assert ALLOWLIST_FETCHER.get("http://photos.example.com/in") == PNG


@pytest.mark.parametrize(
    "fetcher", [PUBLIC_FETCHER, ALLOWLIST_FETCHER, Fetcher()], ids=["public", "listed", "any"]
)
def test_three_redirects_at_most(fetcher, fake_internet):
    fake_internet.public_server.pages |= {f"/{n}": f"/{n - 1}" if n > 1 else "/cat.png" for n in range(1, 5)}
    assert fetcher.get("http://photos.example.com/3") == PNG
    assert_refused(fake_internet, "http://photos.example.com/4", fetcher, "redirects more than 3 times")
    fake_internet.public_server.pages["/loop"] = "/loop"
    assert_refused(fake_internet, "http://photos.example.com/loop", fetcher, "redirects more than 3 times")
    assert fake_internet.public_server.hits.count("/loop") == 4


@pytest.mark.parametrize("fetcher", [PUBLIC_FETCHER, ALLOWLIST_FETCHER], ids=["public", "listed"])
def test_vllm_mlx_490_dns_rebinding(fetcher, fake_internet):
    """DNS rebinding: a second resolution would give this machine; the connection goes to the checked address."""
    fake_internet.addresses_by_host["photos.example.com"] = [[PUBLIC_ADDRESSES[0]], ["127.0.0.1"]]
    assert fetcher.get("http://photos.example.com/cat.png") == PNG
    assert fake_internet.connected_addresses == [(PUBLIC_ADDRESSES[0], 80)]
    assert fake_internet.resolved_hosts == ["photos.example.com"]
    assert_refused(fake_internet, "http://photos.example.com/cat.png", fetcher, "public internet")


def test_vllm_mlx_490_dns_rebinding_between_redirects(fake_internet):
    fake_internet.addresses_by_host["photos.example.com"] = [[PUBLIC_ADDRESSES[0]], ["127.0.0.1"]]
    fake_internet.public_server.pages["/again"] = "/cat.png"
    assert_refused(fake_internet, "http://photos.example.com/again", match="public internet")


class RecordingSSLContext(ssl.SSLContext):
    """Opens no TLS connection; records the host name that would be verified."""

    def wrap_socket(self, sock, *args, server_hostname=None, **kwargs):
        self.hosts.append(server_hostname)
        return sock


def test_vllm_mlx_490_the_certificate_is_the_names(fake_internet, monkeypatch):
    """Although the connection goes to an IP address. Each redirect verifies its own host, even at the same address."""
    context = RecordingSSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hosts = []
    monkeypatch.setattr(fetch, "_ssl_context", lambda: context)
    fake_internet.addresses_by_host["cdn.example.com"] = [PUBLIC_ADDRESSES[0]]
    fake_internet.public_server.pages["/to"] = "https://cdn.example.com/cat.png"
    assert PUBLIC_FETCHER.get("https://photos.example.com/to") == PNG
    assert context.hosts == ["photos.example.com", "cdn.example.com"]
    assert fake_internet.connected_addresses == [(PUBLIC_ADDRESSES[0], 443)] * 2


def test_certificates_are_checked(fake_internet):
    assert fetch._ssl_context().verify_mode is ssl.CERT_REQUIRED
    assert fetch._ssl_context().check_hostname
    said = assert_refused(
        fake_internet, "https://photos.example.com/cat.png", match="does not answer as it should"
    )
    assert "_ssl" not in said  # the outer server speaks no TLS


def test_no_cookie_password_or_proxy_is_used(fake_internet, monkeypatch, tmp_path):
    """No cookie is passed from one redirect to the next, and no password or proxy of the environment is used."""
    (tmp_path / "netrc").write_text("default login owner password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    fake_internet.public_server.pages |= {"/1": "/2", "/2": "http://other.example.org/cat.png"}
    assert PUBLIC_FETCHER.get("http://photos.example.com/1") == PNG
    assert fake_internet.connected_addresses == [
        (PUBLIC_ADDRESSES[0], 80),
        (PUBLIC_ADDRESSES[0], 80),
        (PUBLIC_ADDRESSES[1], 80),
    ]
    for headers in fake_internet.public_server.headers:
        assert {name.lower() for name in headers} == {
            "host",
            "accept",
            "accept-encoding",
            "connection",
            "user-agent",
        }


@pytest.mark.parametrize("length", [{}, {"Content-Length": "10"}, {"Transfer-Encoding": "chunked"}])
def test_cve_2026_0599_an_endless_body(length, fake_internet):
    """Whatever length the server declares, no more than the limit is read."""

    def endless(page):
        page.send_response(200)
        for name, value in (length if "Content-Length" not in length else {}).items():
            page.send_header(name, value)
        page.end_headers()
        chunk = b"x" * 65536
        page.send_slowly(b"10000\r\n" + chunk + b"\r\n" if "Transfer-Encoding" in length else chunk, 0)

    fake_internet.public_server.pages["/endless"] = endless
    fetcher = Fetcher(policy="public", max_bytes=200_000)
    assert_refused(fake_internet, "http://photos.example.com/endless", fetcher, "larger than 200,000 bytes")
    assert fake_internet.public_server.sent < 20_000_000, "the rest was not waited for"


def test_cve_2026_0599_compressed_bodies_are_not_decompressed(fake_internet):
    """Ten megabytes of zeros in ten compressed kilobytes: nothing is decompressed."""
    packed = gzip.compress(bytes(10_000_000))
    fake_internet.public_server.pages["/bomb"] = lambda page: page.send_answer(
        200, packed, **{"Content-Encoding": "gzip"}
    )
    fetcher = Fetcher(policy="public", max_bytes=100_000)
    assert fetcher.get("http://photos.example.com/bomb") == packed
    assert fake_internet.public_server.headers[0]["Accept-Encoding"] == "identity"


def test_cve_2026_0599_an_endless_redirect(fake_internet):
    """The body of a redirect is not read at all."""

    def endless(page):
        page.send_response(302)
        page.send_header("Location", "/cat.png")
        page.end_headers()
        page.send_slowly(b"x" * 65536, 0)

    fake_internet.public_server.pages["/endless"] = endless
    assert PUBLIC_FETCHER.get("http://photos.example.com/endless") == PNG
    assert fake_internet.public_server.sent < 20_000_000


def make_slow_page(page, *, head=b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"):
    page.wfile.write(head)
    page.send_slowly(b"x", 0.02)


@pytest.mark.parametrize("policy", ["any", "public", "photos.example.com"])
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 302 Found\r\nLocation: /",
    ],
)
def test_a_response_that_never_ends_times_out(head, policy, fake_internet):
    """Each byte comes soon, the end never: the time limit is for the whole download."""
    fake_internet.public_server.pages["/slow"] = lambda page: make_slow_page(page, head=head)
    assert_refused(
        fake_internet,
        "http://photos.example.com/slow",
        Fetcher(policy=policy, timeout=0.3),
        r"longer than 0\.3 seconds",
    )
    for _ in range(500):  # the connection is closed, not left behind
        if not any(thread.name == "idefics-fetch" for thread in threading.enumerate()):
            break
        time.sleep(0.01)
    else:
        pytest.fail("the thread that fetches is still there")


def test_a_name_resolution_that_never_ends(fake_internet, monkeypatch):
    """The name server of an untrusted sender's host may be slow."""
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(30) and [])
    try:
        for policy in ("public", "photos.example.com"):
            assert_refused(
                fake_internet,
                "http://photos.example.com/",
                Fetcher(policy=policy, timeout=0.1),
                "longer than",
            )
    finally:
        answer.set()


def test_a_list_of_hosts(fake_internet):
    fake_internet.addresses_by_host |= {
        name: [PUBLIC_ADDRESSES[0]] for name in ("a.example.org", "b.a.example.org", "example.org")
    }
    fake_internet.addresses_by_host |= {
        name: [PUBLIC_ADDRESSES[0]] for name in ("evilexample.org", "photos.example.com.evil.net")
    }
    for host in ("photos.example.com", "PHOTOS.example.com", "a.example.org", "b.a.example.org"):
        assert ALLOWLIST_FETCHER.get(f"http://{host}/cat.png") == PNG
    asked = len(fake_internet.public_server.hits)
    for host in (
        "example.org",
        "evilexample.org",
        "photos.example.com.evil.net",
        "x.photos.example.com",
        PUBLIC_ADDRESSES[0],
    ):
        assert_refused(fake_internet, f"http://{host}/cat.png", ALLOWLIST_FETCHER, "not among the hosts")
    assert len(fake_internet.public_server.hits) == asked


@pytest.mark.parametrize(
    "policy",
    [
        *(
            "",
            "all",
            "Public",
            "any,public",
            "public,",
            "*",
            "*.com",
            "*example.org",
            "a.*.org",
            "http://example.org",
        ),
        *(
            "example.org/",
            "example.org:443",
            "example.org.",
            "127.0.0.1",
            "[::1]",
            "user@example.org",
            "exämple.org",
        ),
        *("localhost", "example.org, ", "example.org;b.example.org", "example.org\n.net"),
    ],
)
def test_invalid_lists_of_hosts(policy):
    with pytest.raises(BadSetting, match=r"give any, public or off, or names of hosts with commas"):
        Fetcher(policy=policy)


def test_a_list_may_be_written_with_spaces_and_capitals():
    hosts = parse_allowed_hosts(" A.example.com , *.Example.ORG")
    assert hosts == ("a.example.com", "*.example.org")
    assert is_allowed_host("x.example.org", hosts)
    assert not is_allowed_host("example.org", hosts)


def test_the_policy_off_makes_no_request(fake_internet):
    assert_refused(
        fake_internet, "http://photos.example.com/cat.png", Fetcher(policy="off", untrusted=True), "are off"
    )
    assert fake_internet.resolved_hosts == fake_internet.public_server.hits == []


def test_untrusted_callers_do_not_learn_the_settings(fake_internet):
    fake_internet.addresses_by_host["inside.example.com"] = ["10.0.0.1"]
    for url in (
        "http://inside.example.com/",
        "http://photos.example.com/none",
        "https://photos.example.com/",
    ):
        said = assert_refused(fake_internet, url)
        assert "remote" not in said
        assert "10.0.0.1" not in said
    said = assert_refused(fake_internet, "http://inside.example.com/", Fetcher(policy="public"))
    assert 'allow it with remote_images="any"' in said


def test_the_owner_names_any_address(fake_internet):
    """For the owner of this machine: this machine, other ports, users and passwords."""
    port = fake_internet.internal_server.server_port
    assert Fetcher().get(f"http://user:word@127.0.0.1:{port}/cat.png") == PNG
    assert fake_internet.internal_server.headers[0]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("network", url_policy.BLOCKED_NETWORKS, ids=str)
def test_both_ends_of_each_special_network_are_refused(network):
    assert not is_public_ip(str(network[0]))
    assert not is_public_ip(str(network[-1]))


def test_python_calls_no_address_private_that_we_call_public():
    """The standard library's list follows the same registries."""
    from random import Random

    draw = Random(0)
    for _ in range(5000):
        four, six = ipaddress.IPv4Address(draw.getrandbits(32)), ipaddress.IPv6Address(draw.getrandbits(128))
        near = ipaddress.IPv6Address((0x20 << 120) + draw.getrandbits(125))
        for address in (four, six, near):
            if is_public_ip(str(address)):
                assert address.is_global
                assert not address.is_multicast
