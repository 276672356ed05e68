"""Pictures of one prompt come side by side, few at once, in their order."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import idefics
from idefics.errors import BadPicture
from idefics.messages import Picture, user
from idefics.processing.fetch import Fetcher
from idefics.processing.prefetch import AT_ONCE, fetching_ahead
from idefics.server.settings import Settings
from idefics.server.visit import for_strangers
from processing.test_fetch import PNG


class Gallery:
    """A server of this machine whose pictures wait for `together` others before they come."""

    def __init__(self, together=1):
        self.gate, self.asked, self.now, self.most = threading.Barrier(together), [], 0, 0
        self.lock = threading.Lock()
        gallery = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self):
                gallery.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request):
        with self.lock:
            self.asked.append(request.path)
            self.now += 1
            self.most = max(self.most, self.now)
        if "wait" in request.path:
            self.gate.wait(10)
        with self.lock:
            self.now -= 1
        is_there = "missing" not in request.path
        request.send_response(200 if is_there else 404)
        request.send_header("Content-Length", str(len(PNG)))
        request.end_headers()
        request.wfile.write(PNG)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def gallery(request):
    gallery = Gallery(getattr(request, "param", 1))
    yield gallery
    gallery.close()


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


@pytest.mark.parametrize("gallery", [AT_ONCE], indirect=True)
def test_pictures_of_one_prompt_come_side_by_side(vlm, gallery):
    """Each comes only when so many are asked for: one after another they never would."""
    urls = [f"{gallery.url}/wait/{n}.png" for n in range(2 * AT_ONCE)]
    prompt = vlm.prompt([user(*map(Picture, urls), "What are they?")])
    assert len(prompt.pictures) == 2 * AT_ONCE
    assert sorted(gallery.asked) == sorted(f"/wait/{n}.png" for n in range(2 * AT_ONCE))
    assert gallery.most == AT_ONCE


@pytest.mark.parametrize("gallery", [2], indirect=True)
def test_a_raw_prompt_too(vlm, gallery):
    assert len(vlm.prompt([f"{gallery.url}/wait/1.png", "and", f"{gallery.url}/wait/2.png"]).pictures) == 2


def test_one_that_comes_twice_is_fetched_once(vlm, gallery):
    urls = [f"{gallery.url}/{n}.png" for n in (1, 2, 1, 1)]
    assert len(vlm.prompt([user(*map(Picture, urls), "?")]).pictures) == 4
    assert sorted(gallery.asked) == ["/1.png", "/2.png"]


def test_the_first_error_in_their_order_is_told(vlm, gallery):
    urls = [f"{gallery.url}/{name}.png" for name in ("1", "missing-a", "missing-b", "2")]
    for _ in range(3):
        with pytest.raises(BadPicture, match=r"missing-a\.png cannot be fetched: the server answers 404"):
            vlm.prompt([user(*map(Picture, urls), "?")])


def test_what_is_asked_for_out_of_order_or_unannounced_comes_as_well(gallery):
    urls = [f"{gallery.url}/{n}.png" for n in range(AT_ONCE + 3)]
    ahead = fetching_ahead(Fetcher(), urls)
    for url in (urls[-1], *urls[:-1], f"{gallery.url}/other.png", urls[0]):
        assert ahead.get(url) == PNG
    assert gallery.asked.count("/0.png") == 2, "nothing is kept that nobody was going to ask for"


def test_fewer_than_two_addresses_and_files_are_not_fetched_ahead():
    fetcher = Fetcher()
    assert (
        fetching_ahead(fetcher, ["http://127.0.0.1/a.png", "data:image/png;base64,AA", "b.png", b"c"])
        is fetcher
    )
    closed = Fetcher(policy="off")
    assert fetching_ahead(closed, ["http://127.0.0.1/a.png", "http://127.0.0.1/b.png"]) is closed


def test_policy_limits_and_trust_stay(gallery):
    urls = [f"{gallery.url}/{n}.png" for n in range(3)]
    public = fetching_ahead(Fetcher(policy="public", strangers=True), urls)
    assert public.distrusts(urls[0])
    with pytest.raises(BadPicture):
        public.get(urls[0])
    small = fetching_ahead(Fetcher(limit_bytes=10), urls)
    for url in urls:
        with pytest.raises(BadPicture, match="larger than 10 bytes"):
            small.get(url)


def test_all_requests_of_a_server_fetch_no_more_than_its_setting_says(vlm, gallery):
    server = for_strangers(vlm, Settings(model="demo", remote_images="public", fetched_at_once=2))
    held = server.processor.fetcher.connections
    assert [held.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    own = fetching_ahead(server.processor.fetcher, [f"{gallery.url}/{n}.png" for n in range(3)])
    assert own.connections is held
    assert own.turns is server.processor.fetcher.turns


def test_a_fetch_waits_for_a_connection(gallery):
    one = threading.Semaphore(1)
    ahead = fetching_ahead(Fetcher(connections=one), [f"{gallery.url}/{n}.png" for n in range(6)])
    assert [ahead.get(f"{gallery.url}/{n}.png") for n in range(6)] == [PNG] * 6
    assert gallery.most == 1
