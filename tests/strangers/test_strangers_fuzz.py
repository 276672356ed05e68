"""Bent files, addresses and requests: whatever comes, an answer or an error of ours, and never much memory.

The same examples in every run; `scripts/fuzz_pictures.py` looks for new ones.
"""

import asyncio
import base64
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
from idefics.processing import strangers
from idefics.processing.fetch import Fetcher
from idefics.processing.images import open_picture
from idefics.server.app import create_app
from idefics.server.settings import Settings
from processing.pictures_tiny import encoded, oriented, picture
from strangers.files import CLAIMING, chunk, file_of, with_scans
from strangers.internet import OUTSIDE, PNG

STRICT = Fetcher(policy="off", strangers=True)


def often(examples):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )


FRAMES = [PIL.Image.new("P", (20, 10), n) for n in range(3)]
FILES = [
    *(file_of(format, (20, 10)) for format in CLAIMING),
    *(oriented(6, format) for format in ("JPEG", "PNG", "WEBP")),
    *(encoded(picture(mode, (20, 10)), "PNG") for mode in ("1", "L", "P", "LA", "RGBA")),
    encoded(PIL.Image.new("I;16", (20, 10), 500), "PNG"),
    encoded(picture("CMYK", (20, 10)), "JPEG"),
    encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:], transparency=1),
    encoded(FRAMES[0].convert("RGB"), "WEBP", save_all=True, append_images=[FRAMES[1].convert("RGB")]),
    encoded(FRAMES[0].convert("RGB"), "PNG", save_all=True, append_images=[FRAMES[1].convert("RGB")]),
    file_of("PNG", (20, 10))[:33] + chunk(b"eXIf", b"II*\0\x08\0\0\0") + file_of("PNG", (20, 10))[33:],
    with_scans((20, 10), 3),
    *(claiming(900, 900) for claiming in CLAIMING.values()),
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


def bent(data, edits):
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
def quick():
    """Largest pictures would be right, but they take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strangers, "MOST_PIXELS", 1_000_000)
        yield


def is_fair(error):
    """One line that tells nothing of this machine."""
    return not re.search(r"0x[0-9a-f]{6,}|BytesIO|\n", str(error)) and len(str(error)) < 500


def looked_at(source):
    """A picture within the limits, or an error of ours."""
    try:
        image = open_picture(Picture(source), STRICT)
    except BadPicture as error:
        return is_fair(error) or pytest.fail(str(error))
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= strangers.MOST_PIXELS
    return image


@often(250)
@given(some.sampled_from(FILES), EDITS)
def test_bent_files(data, edits):
    looked_at(bent(data, edits))


@often(150)
@given(some.sampled_from([data[:n] for data in FILES for n in (2, 4, 12, 40)]), some.binary(max_size=400))
def test_files_of_a_few_right_bytes(start, rest):
    looked_at(start + rest)


@often(60)
@given(some.sampled_from(FILES), EDITS)
def test_bent_files_take_little_memory_of_python(data, edits):
    tracemalloc.start()
    try:
        looked_at(bent(data, edits))
        assert tracemalloc.get_traced_memory()[1] < 12 * strangers.MOST_PIXELS
    finally:
        tracemalloc.stop()


@often(150)
@given(
    some.binary(max_size=60) | some.text(max_size=60).map(str.encode), some.text(max_size=30), some.booleans()
)
def test_data_uris(data, head, packed):
    body = base64.b64encode(data).decode() if packed else data.decode("latin1")
    looked_at(f"data:{head}{';base64' if packed else ''},{body}")
    looked_at(f"data:{head}")


@often(400)
@given(some.binary(max_size=300) | some.tuples(some.sampled_from(FILES), EDITS).map(lambda pair: bent(*pair)))
def test_a_bare_jpeg_is_part_of_the_file_and_bare(data):
    data = b"\xff\xd8" + data.removeprefix(b"\xff\xd8")
    try:
        bare, exif = strangers.bare_jpeg(data)
    except BadPicture:
        return
    assert len(bare) + len(exif) <= len(data)
    assert strangers.bare_jpeg(bare) == (bare, b"")


@often(300)
@given(
    some.binary(max_size=100),
    some.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0"]),
)
def test_any_exif_says_an_orientation(rest, start):
    assert 0 <= strangers.orientation(start + rest) <= 65_535


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


class Everywhere(dict):
    """A picture on every page."""

    def get(self, page):
        return super().get(page, PNG)


@pytest.mark.parametrize("policy", ["public", "photos.example.com,*.photos.example.com"])
def test_addresses(policy, internet):
    """From the request and from a redirect: nobody inside is ever asked."""
    fetcher = Fetcher(policy=policy, strangers=True, timeout=5.0)
    fetched, refused, internet.outer.pages = [], [], Everywhere()
    internet.names |= {"x.photos.example.com": ["127.0.0.1"], "inside.example.com": ["10.0.0.1"]}

    @often(120)
    @given(URLS)
    def tried(url):
        internet.outer.pages["/to"] = (
            url.encode("ascii", "ignore").decode().replace("\n", "").replace("\r", "") or "/"
        )
        for one in (url, "http://photos.example.com/to"):
            try:
                fetched.append(fetcher.get(one))
            except BadPicture as error:
                refused.append(is_fair(error) or pytest.fail(str(error)))
        assert {address for address, _ in internet.reached} <= set(OUTSIDE)

    tried()
    assert internet.inner.hits == []
    assert fetched
    assert refused


PLAIN = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8)
JSON = some.recursive(
    PLAIN,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SHOWN = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(FILES[1]).decode()}"},
}
TURN = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, SHOWN]}
REQUESTS = [
    ("/v1/chat/completions", {"model": "demo", "messages": [TURN], "max_tokens": 2, "n": 2, "stop": ["x"]}),
    (
        "/v1/chat/completions",
        {"model": "demo", "messages": [TURN], "max_tokens": 2, "stream": True, "logprobs": True},
    ),
    ("/v1/completions", {"model": "demo", "prompt": "A cat", "max_tokens": 2, "temperature": 1.0, "seed": 1}),
]


def places(value, here=()):
    """Every place in a JSON value, as the keys that lead there."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*here, key))


def put(value, place, new):
    if not place:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[place[0]] = put(copied[place[0]], place[1:], new)
    return copied


@some.composite
def requests(draw):
    """A request in which one or two places hold something else, as bytes."""
    path, body = draw(some.sampled_from(REQUESTS))
    for _ in range(draw(some.integers(1, 2))):
        body = put(body, draw(some.sampled_from(sorted(places(body), key=repr))), draw(JSON))
    written = json.dumps(body).encode("utf-8", "surrogatepass")
    return path, bent(written, draw(EDITS)) if draw(some.integers(0, 9)) == 0 else written


def test_requests(vlm):
    """A client's mistakes are its own: 200 or 4xx, in the shape of OpenAI's errors, and nothing is left behind."""
    app = create_app(vlm, Settings(model="demo"))
    service = app.state.service

    async def asked(path, body):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=body, headers={"Content-Type": "application/json"})

    statuses = set()
    with asyncio.Runner() as loop:

        @often(200)
        @given(requests())
        def tried(request):
            answer = loop.run(asked(*request))
            statuses.add(answer.status_code)
            assert answer.status_code == 200 or 400 <= answer.status_code < 500
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code", "request_id"}
                assert len(answer.content) < 20_000
            assert not service.admission.places
            assert service.admission.pictures == service.admission.tokens == 0

        tried()
    service.workers.shutdown()
    assert {200, 400} <= statuses
