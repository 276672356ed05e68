"""Damaged files, URLs and requests: always an answer or an error of this package, and never much memory.

The same examples in every run; `scripts/fuzz_pictures.py` looks for new ones.
"""

import asyncio
import base64
import ipaddress
import json
import re
import tracemalloc

import httpx
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from idefics.errors import BadPicture
from idefics.messages import Picture
from idefics.processing import untrusted
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.url_policy import is_public_ip
from idefics.server.app import create_app
from idefics.server.settings import Settings
from processing.pictures_tiny import encode_picture, encode_with_orientation, random_picture
from untrusted.crafted_pictures import FILE_CLAIMING_SIZE_BY_FORMAT, encode_image, jpeg_with_scans, png_chunk
from untrusted.fake_internet import CLOUD_METADATA_ADDRESS, PNG, is_public_address

UNTRUSTED_FETCHER = Fetcher(policy="off", untrusted=True)


def with_examples(examples):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )


GIF_FRAMES = [PIL.Image.new("P", (20, 10), n) for n in range(3)]
VALID_FILES = [
    *(encode_image(format, (20, 10)) for format in FILE_CLAIMING_SIZE_BY_FORMAT),
    *(encode_with_orientation(6, format) for format in ("JPEG", "PNG", "WEBP")),
    *(encode_picture(random_picture(mode, (20, 10)), "PNG") for mode in ("1", "L", "P", "LA", "RGBA")),
    encode_picture(PIL.Image.new("I;16", (20, 10), 500), "PNG"),
    encode_picture(random_picture("CMYK", (20, 10)), "JPEG"),
    encode_picture(GIF_FRAMES[0], "GIF", save_all=True, append_images=GIF_FRAMES[1:], transparency=1),
    encode_picture(
        GIF_FRAMES[0].convert("RGB"), "WEBP", save_all=True, append_images=[GIF_FRAMES[1].convert("RGB")]
    ),
    encode_picture(
        GIF_FRAMES[0].convert("RGB"), "PNG", save_all=True, append_images=[GIF_FRAMES[1].convert("RGB")]
    ),
    encode_image("PNG", (20, 10))[:33]
    + png_chunk(b"eXIf", b"II*\0\x08\0\0\0")
    + encode_image("PNG", (20, 10))[33:],
    jpeg_with_scans((20, 10), 3),
    *(claiming(900, 900) for claiming in FILE_CLAIMING_SIZE_BY_FORMAT.values()),
]
EDITS = some.lists(
    some.tuples(
        some.sampled_from(["set", "insert", "delete", "repeat", "cut"]),
        some.floats(0, 1, exclude_max=True),
        some.binary(min_size=1, max_size=8),
        some.integers(1, 40),
    ),
    max_size=6,
)


def mutate(data, edits):
    for what, where, more, count in edits:
        place = int(where * len(data))
        match what:
            case "set":
                data = data[:place] + more + data[place + len(more) :]
            case "insert":
                data = data[:place] + more + data[place:]
            case "delete":
                data = data[:place] + data[place + count :]
            case "repeat":
                data = data[:place] + data[place : place + count] * count + data[place + count :]
            case "cut":
                data = data[:place]
    return data


@pytest.fixture(scope="module", autouse=True)
def small_pixel_limit():
    """Pictures of the largest size are valid, but take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrusted, "MAX_UNTRUSTED_PIXELS", 1_000_000)
        yield


def assert_safe_message(error):
    """Whether a message is one line and says nothing about this machine."""
    return not re.search(r"0x[0-9a-f]{6,}|BytesIO|\n", str(error)) and len(str(error)) < 500


def open_or_refuse(source):
    """Asserts that a source gives a picture within the limits, or an error of this package."""
    try:
        image = open_picture(Picture(source), UNTRUSTED_FETCHER)
    except BadPicture as error:
        return assert_safe_message(error) or pytest.fail(str(error))
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= untrusted.MAX_UNTRUSTED_PIXELS
    return image


@with_examples(250)
@given(some.sampled_from(VALID_FILES), EDITS)
def test_damaged_files(data, edits):
    open_or_refuse(mutate(data, edits))


@with_examples(150)
@given(
    some.sampled_from([data[:n] for data in VALID_FILES for n in (2, 4, 12, 40)]), some.binary(max_size=400)
)
def test_short_files_with_valid_signatures(start, rest):
    open_or_refuse(start + rest)


@with_examples(60)
@given(some.sampled_from(VALID_FILES), EDITS)
def test_damaged_files_take_little_memory_of_python(data, edits):
    tracemalloc.start()
    try:
        open_or_refuse(mutate(data, edits))
        assert tracemalloc.get_traced_memory()[1] < 12 * untrusted.MAX_UNTRUSTED_PIXELS
    finally:
        tracemalloc.stop()


@with_examples(150)
@given(
    some.binary(max_size=60) | some.text(max_size=60).map(str.encode), some.text(max_size=30), some.booleans()
)
def test_data_uris(data, head, packed):
    body = base64.b64encode(data).decode() if packed else data.decode("latin1")
    open_or_refuse(f"data:{head}{';base64' if packed else ''},{body}")
    open_or_refuse(f"data:{head}")


@with_examples(400)
@given(
    some.binary(max_size=300)
    | some.tuples(some.sampled_from(VALID_FILES), EDITS).map(lambda pair: mutate(*pair))
)
def test_a_bare_jpeg_is_part_of_the_file_and_bare(data):
    data = b"\xff\xd8" + data.removeprefix(b"\xff\xd8")
    try:
        bare, exif = untrusted.strip_jpeg_metadata(data)
    except BadPicture:
        return
    assert len(bare) + len(exif) <= len(data)
    assert untrusted.strip_jpeg_metadata(bare) == (bare, b"")


@with_examples(300)
@given(
    some.binary(max_size=100),
    some.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0"]),
)
def test_any_exif_says_an_orientation(rest, start):
    assert 0 <= untrusted.read_exif_orientation(start + rest) <= 65_535


NUMBERS = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "0",
    "2130706433",
    "0x7f.1",
    "0177.1",
    "[::1]",
    "[::ffff:7f00:1]",
]
NAMES = [
    "photos.example.com",
    "inside.example.com",
    "localhost",
    "x.photos.example.com",
    "EXAMPLE.com",
    "a..b",
    "é.com",
]
HOSTS = some.sampled_from([*NUMBERS, *NAMES]) | some.text(max_size=20) | some.ip_addresses().map(str)
URLS = some.builds(
    "{}{}{}{}{}{}".format,
    some.sampled_from(["http://", "https://", "HTTP://", "http:/", "http:\\\\", "//", "file://", "ftp://"]),
    some.sampled_from(["", "", "", "a@", "a:b@", "127.0.0.1@", "\\", "%00"]),
    HOSTS,
    some.sampled_from(["", "", "", ":80", ":443", ":22", ":", ":a", "."]),
    some.sampled_from(["", "/", "/cat.png", "\\", "?", "#", "/@127.0.0.1", "/../..//"]),
    some.text(max_size=10),
)


# Refused although the `ipaddress` module of one Python or another calls them public.
SPECIAL_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        f"{CLOUD_METADATA_ADDRESS}/32",
        "192.0.0.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "2001::/23",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
        "fec0::/10",
    )
]


@with_examples(500)
@given(some.ip_addresses())
def test_an_accepted_ip_is_public_and_a_refused_one_is_not(address):
    is_special = (
        address.is_multicast or address.is_reserved or any(address in one for one in SPECIAL_NETWORKS)
    )
    assert is_public_ip(str(address)) == (address.is_global and not is_special)


class PictureOnEveryPage(dict):
    """The pages of a server that has a picture at every path."""

    def get(self, page):
        return super().get(page, PNG)


@pytest.mark.parametrize("policy", ["public", "photos.example.com,*.photos.example.com"])
def test_addresses(policy, fake_internet):
    """From the request and from a redirect: only public addresses are ever connected to."""
    fetcher = Fetcher(policy=policy, untrusted=True, timeout=5.0)
    fetched, refused, fake_internet.public_server.pages = [], [], PictureOnEveryPage()
    fake_internet.addresses_by_host |= {
        "x.photos.example.com": ["127.0.0.1"],
        "inside.example.com": ["10.0.0.1"],
    }

    @with_examples(120)
    @given(URLS)
    def try_url(url):
        fake_internet.public_server.pages["/to"] = (
            url.encode("ascii", "ignore").decode().replace("\n", "").replace("\r", "") or "/"
        )
        for one in (url, "http://photos.example.com/to"):
            try:
                fetched.append(fetcher.get(one))
            except BadPicture as error:
                refused.append(assert_safe_message(error) or pytest.fail(str(error)))
        assert all(is_public_address(address) for address, _ in fake_internet.connected_addresses)

    try_url()
    assert fake_internet.internal_server.hits == []
    assert fetched
    assert refused


PLAIN = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8)
JSON = some.recursive(
    PLAIN,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
IMAGE_PART = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(VALID_FILES[1]).decode()}"},
}
USER_MESSAGE = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE_PART]}
REQUESTS = [
    (
        "/v1/chat/completions",
        {"model": "demo", "messages": [USER_MESSAGE], "max_tokens": 2, "n": 2, "stop": ["x"]},
    ),
    (
        "/v1/chat/completions",
        {"model": "demo", "messages": [USER_MESSAGE], "max_tokens": 2, "stream": True, "logprobs": True},
    ),
    ("/v1/completions", {"model": "demo", "prompt": "A cat", "max_tokens": 2, "temperature": 1.0, "seed": 1}),
]


def json_paths(value, path=()):
    """The path of every value within a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from json_paths(inner, (*path, key))


def replace_at(value, path, new):
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replace_at(copied[path[0]], path[1:], new)
    return copied


@some.composite
def mutated_requests(draw):
    """A request in which one or two values are replaced, as bytes."""
    path, body = draw(some.sampled_from(REQUESTS))
    for _ in range(draw(some.integers(1, 2))):
        body = replace_at(body, draw(some.sampled_from(sorted(json_paths(body), key=repr))), draw(JSON))
    written = json.dumps(body).encode("utf-8", "surrogatepass")
    return path, mutate(written, draw(EDITS)) if draw(some.integers(0, 9)) == 0 else written


def test_requests(vlm):
    """Invalid requests get a 4xx in the shape of OpenAI's errors, and no slot or picture is left allocated."""
    app = create_app(vlm, Settings(model="demo"))
    service = app.state.service

    async def asked(path, body):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=body, headers={"Content-Type": "application/json"})

    statuses = set()
    with asyncio.Runner() as loop:

        @with_examples(200)
        @given(mutated_requests())
        def tried(request):
            answer = loop.run(asked(*request))
            statuses.add(answer.status_code)
            assert answer.status_code == 200 or 400 <= answer.status_code < 500
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code", "request_id"}
                assert len(answer.content) < 20_000
            assert not service.admission.slots
            assert service.admission.usage["pictures"] == service.admission.usage["tokens"] == 0

        tried()
    service.workers.shutdown()
    assert {200, 400} <= statuses
