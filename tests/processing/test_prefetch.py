"""Remote pictures of one prompt are fetched concurrently, a few at the same time, and used in order."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import idefics
from idefics.errors import BadPicture
from idefics.messages import Picture, user
from idefics.processing.fetch import Fetcher
from idefics.processing.prefetch import MAX_CONCURRENT_FETCHES, create_prefetcher
from idefics.server.server_state import with_untrusted_fetcher
from idefics.server.settings import Settings
from processing.test_fetch import PNG


class PictureServer:
    """A server whose pages with "wait" in their path answer once `num_concurrent` requests are waiting."""

    def __init__(self, num_concurrent=1):
        self.barrier, self.requested_paths, self.num_in_flight, self.max_in_flight = (
            threading.Barrier(num_concurrent),
            [],
            0,
            0,
        )
        self.lock = threading.Lock()
        picture_server = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self):
                picture_server.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request):
        with self.lock:
            self.requested_paths.append(request.path)
            self.num_in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        if "wait" in request.path:
            self.barrier.wait(10)
        if "slow" in request.path:
            time.sleep(0.05)
        with self.lock:
            self.num_in_flight -= 1
        is_there = "missing" not in request.path
        request.send_response(200 if is_there else 404)
        request.send_header("Content-Length", str(len(PNG)))
        request.end_headers()
        request.wfile.write(PNG)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def picture_server(request):
    server = PictureServer(getattr(request, "param", 1))
    yield server
    server.close()


@pytest.fixture(scope="module")
def vlm():
    return idefics.load("demo")


@pytest.mark.parametrize("picture_server", [MAX_CONCURRENT_FETCHES], indirect=True)
def test_pictures_of_one_prompt_are_fetched_concurrently(vlm, picture_server):
    """The server answers none of them until that many are requested at the same time."""
    urls = [f"{picture_server.url}/wait/{n}.png" for n in range(2 * MAX_CONCURRENT_FETCHES)]
    prompt = vlm.prompt([user(*map(Picture, urls), "What are they?")])
    assert len(prompt.pictures) == 2 * MAX_CONCURRENT_FETCHES
    assert sorted(picture_server.requested_paths) == sorted(
        f"/wait/{n}.png" for n in range(2 * MAX_CONCURRENT_FETCHES)
    )
    assert picture_server.max_in_flight == MAX_CONCURRENT_FETCHES


@pytest.mark.parametrize("picture_server", [2], indirect=True)
def test_pictures_of_a_raw_prompt_are_fetched_concurrently(vlm, picture_server):
    assert (
        len(
            vlm.prompt(
                [f"{picture_server.url}/wait/1.png", "and", f"{picture_server.url}/wait/2.png"]
            ).pictures
        )
        == 2
    )


def test_a_url_that_occurs_twice_is_fetched_once(vlm, picture_server):
    urls = [f"{picture_server.url}/{n}.png" for n in (1, 2, 1, 1)]
    assert len(vlm.prompt([user(*map(Picture, urls), "?")]).pictures) == 4
    assert sorted(picture_server.requested_paths) == ["/1.png", "/2.png"]


def test_the_first_error_in_the_order_of_the_prompt_is_raised(vlm, picture_server):
    urls = [f"{picture_server.url}/{name}.png" for name in ("1", "missing-a", "missing-b", "2")]
    for _ in range(3):
        with pytest.raises(BadPicture, match=r"missing-a\.png cannot be fetched: the server answers 404"):
            vlm.prompt([user(*map(Picture, urls), "?")])


def test_urls_out_of_order_or_unannounced_are_fetched_too(picture_server):
    urls = [f"{picture_server.url}/{n}.png" for n in range(MAX_CONCURRENT_FETCHES + 3)]
    ahead = create_prefetcher(Fetcher(), urls)
    for url in (urls[-1], *urls[:-1], f"{picture_server.url}/other.png", urls[0]):
        assert ahead.get(url) == PNG
    assert picture_server.requested_paths.count("/0.png") == 2, (
        "nothing is kept that nobody was going to ask for"
    )


def test_fewer_than_two_addresses_and_files_are_not_prefetched():
    fetcher = Fetcher()
    assert (
        create_prefetcher(fetcher, ["http://127.0.0.1/a.png", "data:image/png;base64,AA", "b.png", b"c"])
        is fetcher
    )
    closed = Fetcher(policy="off")
    assert create_prefetcher(closed, ["http://127.0.0.1/a.png", "http://127.0.0.1/b.png"]) is closed


def test_a_prefetcher_keeps_policy_limits_and_trust(picture_server):
    urls = [f"{picture_server.url}/{n}.png" for n in range(3)]
    public = create_prefetcher(Fetcher(policy="public", untrusted=True), urls)
    assert public.is_untrusted(urls[0])
    with pytest.raises(BadPicture):
        public.get(urls[0])
    small = create_prefetcher(Fetcher(max_bytes=10), urls)
    for url in urls:
        with pytest.raises(BadPicture, match="larger than 10 bytes"):
            small.get(url)


def test_all_requests_of_a_server_fetch_no_more_than_its_setting_says(vlm, picture_server):
    server = with_untrusted_fetcher(vlm, Settings(model="demo", remote_images="public", fetched_at_once=2))
    held = server.processor.fetcher.fetch_slots
    assert [held.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    held.release(2)
    own = create_prefetcher(server.processor.fetcher, [f"{picture_server.url}/{n}.png" for n in range(3)])
    assert own.fetch_slots is held
    assert own.decode_slots is server.processor.fetcher.decode_slots


def test_a_fetch_waits_for_a_fetch_slot(picture_server):
    one = threading.Semaphore(1)
    urls = [f"{picture_server.url}/slow{n}.png" for n in range(6)]
    ahead = create_prefetcher(Fetcher(fetch_slots=one), urls)
    assert [ahead.get(url) for url in urls] == [PNG] * 6
    assert picture_server.max_in_flight == 1
