"""The server against known vulnerabilities of others: request limits, origins, and routes that must not exist.

Tests carry the names of the holes that they keep shut.
"""

import asyncio
import json
import pickle
import re
import socket
import threading
import time

import httpx
import pytest

import idefics
from idefics.errors import BadSetting
from idefics.server import server_state
from idefics.server.app import create_app
from idefics.server.settings import Settings
from idefics.server.sockets import bind_socket
from idefics.server.uvicorn_server import MAX_HEADER_BYTES, DrainingServer
from untrusted.crafted_pictures import (
    FILE_CLAIMING_SIZE_BY_FORMAT,
    encode_image,
    jpeg_with_scans,
    jpeg_with_segments,
    make_exif_bomb,
    png_claiming_size,
)
from untrusted.fake_internet import PNG
from untrusted.test_untrusted_pictures import make_data_uri

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
INPUT_BY_PATH = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"prompt": "Hi"},
    RESPONSES: {"input": "Hi"},
}


class SyncClient:
    """Calls an app without a network."""

    def __init__(self, vlm, **settings):
        self.app = create_app(vlm, Settings(model="demo", **settings))
        self.service = self.app.state.service

    def __call__(self, method, path, **request):
        async def call():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **request)

        return asyncio.run(call())

    def ask(self, path, **more):
        return self("POST", path, json={"model": "demo", **INPUT_BY_PATH[path], **more})

    def ask_about_url(self, url):
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        return self.ask(CHAT, messages=[{"role": "user", "content": parts}], max_tokens=1)


@pytest.fixture
def client(vlm):
    client = SyncClient(vlm)
    yield client
    client.service.workers.shutdown()


@pytest.fixture
def forbid_generation(vlm, monkeypatch):
    """Fails the test if the model gets a request or a prompt is made."""
    for name in ("submit", "score"):
        monkeypatch.setattr(vlm.engine, name, lambda *_, **__: pytest.fail("work was done"))


def error_message(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


EXCESSIVE_FIELDS = [
    *((CHAT, {"n": n}) for n in (17, 16_384, 2**31, 0, -1)),
    (COMPLETIONS, {"n": 17}),
    *((path, {"stop": ["x"] * 5}) for path in (CHAT, COMPLETIONS)),
    *((path, {"stop": [str(n) for n in range(10_000)]}) for path in (CHAT, COMPLETIONS)),
    (CHAT, {"stop": "x" * 300}),
    (CHAT, {"logprobs": True, "top_logprobs": 21}),
    (CHAT, {"logprobs": True, "top_logprobs": 10**9}),
    (COMPLETIONS, {"logprobs": 6}),
    (RESPONSES, {"top_logprobs": 21}),
    *((path, {"banned": ["x"] * 129}) for path in (CHAT, COMPLETIONS)),
    (CHAT, {"logit_bias": {str(n): 1 for n in range(301)}}),
    (CHAT, {"max_tokens": 10**12}),
    (RESPONSES, {"max_output_tokens": 10**12}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}] * 513}),
    (CHAT, {"prompt_logprobs": 100}),
    (CHAT, {"best_of": 100}),
    (COMPLETIONS, {"best_of": 100}),
    (COMPLETIONS, {"prompt": ["a"] * 129}),
    (COMPLETIONS, {"prompt": ["a"] * 100, "n": 2}),
    (CHAT, {"choices": [str(n) for n in range(1001)]}),
    (CHAT, {"regex": "a" * 5000}),
]


@pytest.mark.parametrize(("path", "more"), EXCESSIVE_FIELDS, ids=lambda value: str(value)[:40])
def test_vllm_37952_51447_a_request_for_too_much(path, more, client, forbid_generation):
    """Too many choices, stop strings, words or log-probabilities are refused by name before anything is computed."""
    said = error_message(client.ask(path, **more))
    assert next(iter(more)) in said
    assert len(said) < 2000


@pytest.mark.parametrize("count", [17, 60])
def test_a_request_with_too_many_pictures(count, client, forbid_generation):
    part = {"type": "image_url", "image_url": {"url": make_data_uri(encode_image("PNG"))}}
    said = error_message(client.ask(CHAT, messages=[{"role": "user", "content": [part] * count}]))
    assert f"{count} pictures" in said


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_embeds": pickle.dumps([1]).hex()},
        {"image_embeds": "x"},
        {"mm_processor_kwargs": {"max_pixels": 1}},
        {"chat_template": "{{ 1 }}"},
        {"lora": "x"},
        {"uuid": "1"},
        {"cache_salt": "1"},
        {"media_io_kwargs": {"image": {"fps": 1}}},
    ],
    ids=lambda more: next(iter(more)),
)
@pytest.mark.parametrize("path", INPUT_BY_PATH)
def test_embeddings_pickles_templates_and_keys_of_caches_are_not_taken(path, more, client, forbid_generation):
    """Fields with tensors, templates or cache keys of clients are refused."""
    message = error_message(client.ask(path, **more))
    assert message.startswith(f"unknown field: {(name := next(iter(more)))}") or re.match(
        rf"{name}( \(.*\))? is not supported", message
    )


@pytest.mark.parametrize("type", ["image_embeds", "input_audio", "video_url", "file", "image"])
def test_embeddings_among_the_parts_are_not_taken(type, client, forbid_generation):
    part = {"type": type, type: {"data": "gASV", "url": "/etc/passwd"}}
    error_message(client.ask(CHAT, messages=[{"role": "user", "content": [part]}]))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/models/demo",
        "/v1/load_lora_adapter",
        "/api/create",
        "/api/pull",
        "/v1/files",
        "/pause",
    ],
)
def test_cve_2024_37032_no_model_comes_over_http(method, path, client):
    """Debugging and administration routes that other servers left open do not exist."""
    assert client(method, path, json={"model": "/etc", "path": "../../x"}).status_code in (404, 405)


@pytest.mark.parametrize("model", ["/etc", "../demo", "idefics2-8b", "demo/../demo", "", "a" * 100_000])
def test_cve_2024_37032_no_path_of_a_client_is_loaded(model, client, forbid_generation, monkeypatch):
    monkeypatch.setattr(idefics, "load", lambda *_, **__: pytest.fail("it was loaded"))
    for path in INPUT_BY_PATH:
        assert len(error_message(client.ask(path, model=model), 404)) < 500


def route_paths(app):
    return [
        "/",
        "/docs",
        "/redoc",
        "/openapi.json",
        *(path.format(name="demo") for path in app.openapi()["paths"]),
    ]


def test_auth_gaps_every_route_asks_for_the_key(vlm):
    """Not only routes below one prefix; unknown paths too."""
    client = SyncClient(vlm, api_key="key")
    paths = [
        *route_paths(client.app),
        "/v1",
        "//v1/models",
        "/V1/models",
        "/health/x",
        "/health/../v1/models",
        "/none",
    ]
    assert len(paths) > 12
    for path in paths:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
            if path != "/health":
                assert client(method, path).status_code == 401, f"{method} {path}"
    assert client("GET", "/health").status_code == 200
    assert client("GET", "/v1/models", headers={"Authorization": "Bearer key"}).status_code == 200
    assert client("GET", "/v1/models?api_key=key").status_code == 401, "addresses are written into logs"
    client.service.workers.shutdown()


UNKNOWN_HOSTS = (
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "",
    "a b",
    "[::2]",
    "0",
)


@pytest.mark.parametrize("name", UNKNOWN_HOSTS)
def test_dns_rebinding_a_page_that_gives_this_machine_its_own_name_is_refused(
    name, client, forbid_generation
):
    for path in ("/v1/models", "/", "/docs", "/openapi.json", "/metrics", "/ready"):
        for port in ("", ":8000"):
            assert "--allowed-hosts" in error_message(client("GET", path, headers={"Host": name + port}), 421)
    body = {"model": "demo", **INPUT_BY_PATH[CHAT]}
    assert error_message(client("POST", CHAT, json=body, headers={"Host": name}), 421)
    assert client("GET", "/health", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1.evil.example:8000", "null", "file://"]
)
def test_csrf_what_a_page_elsewhere_sends_is_refused(origin, client, forbid_generation):
    """A form, or JSON sent as text, which a browser sends cross-origin without a preflight request."""
    path, form = "/v1/images/tasks/caption", {"files": {"image": ("a.png", PNG)}}
    way = f"--allowed-origins {origin}" if "example" in origin else "--allowed-origins '*' and a key"
    assert way in error_message(client("POST", path, headers={"Origin": origin}, **form), 403)
    said = {"Origin": origin, "Content-Type": "text/plain"}
    body = json.dumps({"model": "demo", **INPUT_BY_PATH[CHAT]})
    assert error_message(client("POST", CHAT, content=body, headers=said), 403)


@pytest.mark.parametrize(
    "name", ["localhost", "LocalHost:3000", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]"]
)
def test_this_machine_s_own_names_are_served(name, client):
    assert client("GET", "/v1/models", headers={"Host": name}).status_code == 200
    assert client("GET", "/v1/models", headers={"Origin": f"http://{name}"}).status_code == 200


def test_more_names_may_be_allowed(vlm):
    box = {"Host": "Box:80", "Origin": "https://idefics.example.com"}
    said = {"allowed_hosts": " box, idefics.example.com"}
    for settings in (said, said | {"host": "0.0.0.0", "insecure": True}, said | {"api_key": "key"}):
        client, key = SyncClient(vlm, **settings), {"Authorization": "Bearer key"}
        assert client("GET", "/v1/models", headers=box | key).status_code == 200
        assert client("GET", "/v1/models", headers={"Host": "example.com"} | key).status_code == 421
        assert client("GET", "/v1/models", headers={"Origin": "http://example.com"} | key).status_code == 403
    for free in ({"api_key": "key"}, {"host": "0.0.0.0", "insecure": True}):
        assert SyncClient(vlm, **free)("GET", "/v1/models", headers=box | key).status_code == 200
    for wrong in ("https://example.com", "box:80", "*", "[::1]", "a b"):
        with pytest.raises(BadSetting, match="without scheme and port"):
            Settings(model="demo", allowed_hosts=wrong)


def test_auth_gaps_a_refused_request_is_not_read(vlm, forbid_generation):
    client, read = SyncClient(vlm, api_key="key"), []

    async def body():
        read.append(1)
        yield b"x"

    assert client("POST", CHAT, content=body()).status_code == 401
    assert not client.service.admission.slots
    client.service.workers.shutdown()


@pytest.fixture
def live_server(vlm):
    """(host, port) of a server on a socket."""
    with bind_socket("127.0.0.1", 0) as listener:
        server = DrainingServer(create_app(vlm, Settings(model="demo", drain=0.0)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DrainingServer, "install_signal_handlers", lambda _: None, raising=False)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield listener.getsockname()
            server.should_exit = True
            thread.join()
    server.service.workers.shutdown()


def send_raw_bytes(address, *pieces):
    """The response of a server to raw bytes."""
    with socket.create_connection(address, timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # it has heard enough
        try:
            return connection.recv(1 << 16)
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (MAX_HEADER_BYTES + 65_536)],
        [b"GET /health HTTP/1.1\r\nHost: x\r\n", *([b"X: 1\r\n" * 1000] * 20), b"\r\n"],
        [b"GET /" + b"a" * (MAX_HEADER_BYTES + 65_536) + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
    ],
    ids=["one long header", "many headers", "a long path"],
)
def test_cve_2025_48956_a_flood_of_headers(live_server, pieces):
    """The parser stops at its limit, and buffers nothing after it."""
    assert b" 200 " not in send_raw_bytes(live_server, *pieces).split(b"\r\n")[0]
    assert (
        b" 200 " in send_raw_bytes(live_server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").split(b"\r\n")[0]
    )


def test_cve_2025_48956_a_hundred_headers_at_most(live_server):
    def head(count):
        extra = b"".join(b"X-%d: 1\r\n" % number for number in range(count))
        return b"GET /health HTTP/1.1\r\nHost: x\r\n" + extra + b"\r\n"

    assert b" 200 " in send_raw_bytes(live_server, head(99)).split(b"\r\n")[0]
    assert b" 431 " in send_raw_bytes(live_server, head(100)).split(b"\r\n")[0]


def test_cve_2026_0599_a_body_without_end(vlm, forbid_generation):
    """The received bytes are counted, whatever length is declared; the rest is not read."""
    client, sent = SyncClient(vlm, body_megabytes=1), []

    async def endless():
        for _ in range(1000):
            sent.append(1)
            yield b" " * 65_536

    error_message(client("POST", CHAT, content=endless(), headers={"Content-Type": "application/json"}), 413)
    assert len(sent) < 1000 or not client.service.admission.slots
    sent.clear()
    announced = {"Content-Type": "application/json", "Content-Length": str(2 << 20)}
    error_message(client("POST", CHAT, content=endless(), headers=announced), 413)
    assert not sent, "what is announced as too large is not read"
    large = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "x" * (1 << 20)}]})
    error_message(client("POST", CHAT, content=large), 413)
    client.service.workers.shutdown()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "http://photos.example.com/cat.png", "https://a.example.com/"]
)
def test_cve_2026_0599_no_address_in_words_is_fetched(url, vlm, fake_internet):
    """Markdown in a text was enough in other servers."""
    client = SyncClient(vlm, remote_images="public")
    for text in (f"![]({url})", f"<img src={url}>", url, f"<image>{url}"):
        assert client.ask(CHAT, messages=[{"role": "user", "content": text}], max_tokens=1).status_code == 200
        assert client.ask(COMPLETIONS, prompt=text, max_tokens=1).status_code == 200
        assert client.ask(RESPONSES, input=text, max_output_tokens=1).status_code == 200
    assert fake_internet.resolved_hosts == fake_internet.connected_addresses == []
    client.service.workers.shutdown()


def test_ghsa_3f6c_7fw2_ppm4_addresses_are_off_until_switched_on(client, fake_internet):
    for url in ("http://photos.example.com/cat.png", "http://127.0.0.1/latest/meta-data"):
        assert "are off" in error_message(client.ask_about_url(url))
    assert fake_internet.resolved_hosts == fake_internet.connected_addresses == []


@pytest.mark.parametrize("route", ["chat", "classify"])
def test_slow_hosts_keep_nobody_else_waiting(route, vlm, fake_internet, monkeypatch):
    """While one more URL than fetch slots hangs, requests with inline pictures are answered."""
    monkeypatch.setattr(server_state, "NUM_WORKERS", 2)
    client, go = SyncClient(vlm, remote_images="public", fetched_at_once=2), threading.Event()
    slow = "http://photos.example.com/slow.png"

    def hang(page):
        go.wait(20)
        page.send_answer(200, PNG)

    fake_internet.public_server.pages["/slow.png"] = hang

    def body(url):
        if route == "classify":
            return {"image_url": url, "labels": ["cat", "dog"], "calibrated": True}
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        return {"model": "demo", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}

    async def scene():
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            path = CHAT if route == "chat" else "/v1/images/tasks/classify"
            hanging = [asyncio.create_task(http.post(path, json=body(slow))) for _ in range(3)]
            try:
                async with asyncio.timeout(8):
                    while len(fake_internet.public_server.hits) < 2:
                        await asyncio.sleep(0.005)
                    for url in (make_data_uri(PNG), make_data_uri(PNG)):
                        assert (await http.post(path, json=body(url))).status_code == 200
            finally:
                assert fake_internet.public_server.hits == ["/slow.png"] * 2, "the third waits for its turn"
                go.set()
                answers = await asyncio.gather(*hanging)
            assert [answer.status_code for answer in answers] == [200] * 3

    asyncio.run(scene())
    client.service.workers.shutdown()
    client.service.fetchers.shutdown()


@pytest.mark.parametrize("allowed", ["public", "photos.example.com,*.example.org"])
def test_ghsa_3f6c_7fw2_ppm4_through_the_server(allowed, vlm, fake_internet):
    client = SyncClient(vlm, remote_images=allowed)
    fake_internet.addresses_by_host |= {
        "inside.example.org": ["10.0.0.1"],
        "photos.example.com": [PUBLIC_ADDRESS],
    }
    fake_internet.public_server.pages["/to"] = "http://169.254.169.254/latest/meta-data"
    assert client.ask_about_url("http://photos.example.com/cat.png").status_code == 200
    for url in (
        *(
            "http://127.0.0.1/latest/meta-data",
            "http://inside.example.org/cat.png",
            "http://photos.example.com/to",
        ),
        *(
            "http://2130706433/",
            "http://[::1]/",
            "http://photos.example.com@127.0.0.1/",
            "http://photos.example.com:22/",
        ),
    ):
        said = error_message(client.ask_about_url(url))
        assert not re.search(r"10\.0\.0\.1|remote_images|--", said.replace(url, "")), said
    assert fake_internet.internal_server.hits == []
    assert {address for address, _ in fake_internet.connected_addresses} == {PUBLIC_ADDRESS}
    client.service.workers.shutdown()


PUBLIC_ADDRESS = "93.184.216.34"


@pytest.mark.parametrize("policy", ["any", "all", "10.0.0.1", "localhost"])
def test_the_server_never_fetches_any_address(policy):
    with pytest.raises(BadSetting, match="remote_images"):
        Settings(model="demo", remote_images=policy)


REFUSED_FILE_BY_NAME = {
    **{
        f"too many pixels, {format}": claiming(8000, 5001)
        for format, claiming in FILE_CLAIMING_SIZE_BY_FORMAT.items()
    },
    "too many scans": jpeg_with_scans((64, 64), 200),
    "another format": b"II*\0\x08\0\0\0\0\0",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "cut short": encode_image("PNG")[:60],
    "empty": b"",
}


@pytest.mark.parametrize("data", REFUSED_FILE_BY_NAME.values(), ids=REFUSED_FILE_BY_NAME)
def test_cve_2026_22778_47010_bad_pictures_through_the_server(data, client):
    said = error_message(client.ask_about_url(make_data_uri(data)))
    assert not re.search(r"0x[0-9a-f]{6,}|BytesIO|/(?!png)|\n", said)
    form = client(
        "POST", "/v1/images/tasks/caption", files={"image": ("x.png", data)}, data={"model": "demo"}
    )
    assert form.status_code == 400
    assert not client.service.admission.slots


def test_cve_2026_22773_the_smallest_picture_through_the_server(client):
    for size in ((1, 1), (1, 3), (3, 1), (4, 1)):
        assert client.ask_about_url(make_data_uri(encode_image("PNG", size))).status_code == 200
    assert client.ask_about_url(make_data_uri(png_claiming_size(1, 1, rows=b""))).status_code == 400
    assert client.ask_about_url(make_data_uri(encode_image("PNG", (1, 1)))).status_code == 200, (
        "and the engine lives on"
    )


def test_exif_that_would_fill_the_memory_is_harmless(client):
    bomb = make_exif_bomb(60_000, 4000)
    assert (
        client.ask_about_url(
            make_data_uri(jpeg_with_segments(encode_image("JPEG"), [b"Exif\0\0" + bomb]))
        ).status_code
        == 200
    )
