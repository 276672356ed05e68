"""Middleware and admission control: keys, limits, shutdown, the access log, metrics, timeouts."""

import asyncio
import base64
import contextlib
import hmac
import json
import logging

import pytest

from idefics.errors import BadSetting, EngineBusy
from idefics.server import middleware
from idefics.server.app import create_app
from idefics.server.request_context import RequestContext
from idefics.server.settings import Settings
from server.conftest import SyncClient
from server.request_bodies import chat_request, image_part, picture_data_uri, text_part, user_message

PATH = "/v1/chat/completions"
API_KEY = "xylo" + "phone"  # tracebacks show lines of this file


@pytest.fixture
def client_with_keys(vlm, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("first\n\nsecond \n")
    return SyncClient(create_app(vlm, Settings(model="demo", api_key="third", api_key_file=keys)))


def bearer_header(key):
    return {"Authorization": f"Bearer {key}"}


def basic_header(key):
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()}


def key_as_user_name_header(key):
    return {"Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode()}


@pytest.mark.parametrize(
    "path", ["/", "/ready", "/metrics", "/v1/models", "/docs", "/openapi.json", "/none", "/healthy/"]
)
def test_a_key_covers_everything(client_with_keys, path):
    answer = client_with_keys.get(path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key(client_with_keys):
    assert client_with_keys.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("key", ["first", "second", "third"])
def test_each_key_is_accepted(client_with_keys, key):
    assert client_with_keys.get("/v1/models", headers=bearer_header(key)).status_code == 200
    assert client_with_keys.get("/v1/models", headers=basic_header(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        bearer_header(""),
        bearer_header("firs"),
        bearer_header("first2"),
        basic_header("fourth"),
        {"Authorization": "first"},
        {"Authorization": "Basic %"},
        key_as_user_name_header("first"),  # the key goes where a password goes
        {"Authorization": "Basic " + base64.b64encode(b"first").decode()},
    ],
)
def test_other_credentials_are_refused(client_with_keys, headers):
    assert client_with_keys.post(PATH, chat_request(), headers=headers).status_code == 401


@pytest.mark.parametrize("key", ["first", "third", "fourth", ""])
def test_all_keys_are_compared_in_constant_time(client_with_keys, monkeypatch, key):
    """All keys are compared, and all digests have the same length."""
    compared, compare = [], hmac.compare_digest

    def counted(one, other):
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    assert client_with_keys.get("/v1/models", headers=bearer_header(key)).status_code == (
        200 if key in ("first", "third") else 401
    )
    assert compared == [(32, 32)] * 3


def test_no_request_is_admitted_during_shutdown(client):
    client.app.state.service.admission.is_closing = True
    answer = client.post(PATH, chat_request())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200


def test_a_browser_is_asked_for_the_key(client_with_keys):
    answer = client_with_keys.get("/", headers={"Accept": "text/html,*/*"})
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert "any user name, and the API key as the password" in answer.headers["www-authenticate"]
    assert answer.headers["content-type"].startswith("text/html")
    assert "<p>the API key is missing or wrong: reload the page and enter it" in answer.text
    assert client_with_keys.get("/").json()["error"]["code"] == "invalid_api_key"


def test_a_body_has_a_limit(vlm):
    small = SyncClient(create_app(vlm, Settings(model="demo", body_megabytes=1)))
    large = b'{"model": "' + b"a" * (1 << 20) + b'"}'
    said_so = small("POST", PATH, content=large)
    assert said_so.status_code == 413

    async def pieces():
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    counted = small("POST", PATH, content=pieces(), headers={"Content-Type": "application/json"})
    assert counted.status_code == 413
    for answer in (said_so, counted):
        assert "1,048,576 bytes" in answer.json()["error"]["message"]


def test_headers_have_a_limit(client):
    flood = {f"x-{number}": "1" for number in range(101)}
    assert client.get("/health", headers=flood).status_code == 431


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        ({"requests_at_once": 1}, "requests"),
        ({"pictures_at_once": 2}, "pictures"),
        ({"tokens_at_once": 300}, "tokens"),
    ],
)
def test_requests_up_to_the_limit_are_admitted(vlm, limits, kind):
    client = SyncClient(create_app(vlm, Settings(model="demo", **limits)))
    admission = client.app.state.service.admission
    alone = client.post(
        PATH,
        chat_request(
            [user_message(image_part("door"), image_part("puppy"), image_part("tower"), text_part("?"))]
        ),
    )
    assert alone.status_code == 200, "a request alone is always let in"
    other = admission.acquire_slot(lambda: None)
    admission.reserve(other, pictures=2, tokens=290)
    refused = client.post(PATH, chat_request())
    assert refused.status_code == 429
    assert kind in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert f'idefics_refusals_total{{reason="{kind}"}} 1.0' in client.get("/metrics").text
    assert client.get("/ready").status_code == (200 if kind == "tokens" else 503)
    admission.release_slot(other)
    assert client.post(PATH, chat_request()).status_code == 200
    assert client.get("/ready").status_code == 200
    assert (admission.usage["pictures"], admission.usage["tokens"], admission.slots) == (0, 0, set())


def test_a_refused_request_releases_its_slot(client):
    admission = client.app.state.service.admission
    for wrong in (
        chat_request(foo=1),
        chat_request(
            [user_message(image_part("door"), {"type": "image_url", "image_url": {"url": "data:,x"}})]
        ),
    ):
        assert client.post(PATH, wrong).status_code == 400
    assert (admission.usage["pictures"], admission.usage["tokens"], admission.slots) == (0, 0, set())


def make_raiser(error):
    def broken(*_, **__):
        raise error

    return broken


ERRORS = [
    RuntimeError("unforeseen"),
    BadSetting("foreseen"),
    EngineBusy(1),
    MemoryError(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "where", ["prompt", "submit", "find_adapter", "deltas", "step", "count", "answered", "end"]
)
def test_a_slot_is_given_back_after_every_kind_of_error(client, vlm, monkeypatch, where, stream, error):
    if where == "step" and isinstance(error, asyncio.CancelledError):
        error = RuntimeError("the engine runs in a thread, where nothing is cancelled")
    service = client.app.state.service
    target, name = {
        "prompt": (service.vlm, "prompt"),
        "submit": (service.vlm, "submit"),
        "find_adapter": (service, "find_adapter"),
        "deltas": (RequestContext, "deltas"),
        "step": (vlm.engine.model_runner, "run"),
        "count": (RequestContext, "record_prompt_metrics"),
        "answered": (service.metrics, "record_answer"),
        "end": (RequestContext, "cancel"),
    }[where]
    monkeypatch.setattr(target, name, make_raiser(error))
    with contextlib.suppress(asyncio.CancelledError):
        client.post(PATH, chat_request(stream=stream))
    admission = service.admission
    assert not admission.slots
    assert (admission.usage["pictures"], admission.usage["tokens"], admission.usage["bytes"]) == (0, 0, 0)
    monkeypatch.undo()
    assert client.post(PATH, chat_request()).status_code == 200
    assert not admission.slots


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/demo", "/health", "/ready", "/metrics", "/openapi.json"]
)
def test_a_slash_at_the_end_makes_no_difference(client, path):
    answers = [client.get(path + slashes) for slashes in ("", "/", "//")]
    assert [answer.status_code for answer in answers] == [200] * 3
    if path != "/metrics":
        assert answers[0].json() == answers[1].json() == answers[2].json()


def test_a_slash_at_the_end_makes_no_difference_to_a_post(client, client_with_keys):
    assert (
        client.post(PATH + "/", chat_request()).json()["choices"]
        == client.post(PATH, chat_request()).json()["choices"]
    )
    assert client.post("/v1/none/", chat_request()).status_code == 404
    assert client_with_keys.get("/v1/models/").status_code == 401
    assert client_with_keys.get("/health/").json() == {"status": "ok"}


def test_other_machines_are_served_only_with_a_key():
    with pytest.raises(BadSetting, match="no key"):
        Settings(host="0.0.0.0")
    for host in ("192.168.1.4", "::", "example.com"):
        with pytest.raises(BadSetting, match="no key"):
            Settings(host=host)
    for more in ({"api_key": "a"}, {"insecure": True}):
        assert Settings(host="0.0.0.0", **more).host == "0.0.0.0"
    assert [Settings(host=host).host for host in ("localhost", "127.0.0.2", "::1")]


def test_a_blank_key_is_no_key(tmp_path):
    empty = tmp_path / "keys.txt"
    empty.write_text("\n \n")
    for settings in (Settings(api_key_file=empty), Settings(api_key=" ")):
        with pytest.raises(BadSetting, match="blank"):
            _ = settings.api_keys
    with pytest.raises(BadSetting, match="cannot be read"):
        _ = Settings(api_key_file=tmp_path / "nowhere").api_keys


def test_the_file_of_keys_is_read_once(vlm, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("a\n")
    settings = Settings(api_key_file=file)
    assert settings.api_keys == (b"a",)
    file.unlink()
    client = SyncClient(create_app(vlm, settings))
    assert client.get("/v1/models", headers={"Authorization": "Bearer a"}).status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_the_log_and_the_metrics_hold_no_contents(client, caplog):
    caplog.set_level(logging.DEBUG)
    client.post(
        PATH + f"?{API_KEY}=1",
        chat_request([user_message(text_part(API_KEY))], user=API_KEY),
        headers={"X-Secret": API_KEY},
    )
    client.post(PATH, chat_request([user_message(text_part(API_KEY))], foo=API_KEY))
    client.get(f"/{API_KEY}")
    client.get("/docs")
    client.get("/openapi.json")
    client.post(
        PATH,
        chat_request([user_message({"type": "image_url", "image_url": {"url": f"https://{API_KEY}.com"}})]),
    )
    lines = [record.getMessage() for record in caplog.records if record.name == "idefics.server.access"]
    assert [line.split()[1:4] for line in lines] == [
        ["POST", PATH, "200"],
        ["POST", PATH, "400"],
        ["GET", "(no", "route)"],
        ["GET", "/docs", "200"],
        ["GET", "/openapi.json", "200"],
        ["POST", PATH, "400"],
    ]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert API_KEY not in "\n".join(ours)
    assert API_KEY not in client.get("/metrics").text


def test_an_unexpected_error_reveals_nothing(client, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError(API_KEY)

    monkeypatch.setattr(client.app.state.service.vlm, "prompt", broken)
    answer = client.post(PATH, chat_request())
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert API_KEY not in answer.text
    assert API_KEY not in caplog.text
    assert "RuntimeError" in caplog.text
    assert "in broken" in caplog.text
    monkeypatch.undo()
    assert client.post(PATH, chat_request()).status_code == 200


def test_an_error_during_a_stream_is_its_last_event(client, vlm, monkeypatch):
    monkeypatch.setattr(vlm.engine.model_runner, "run", fail_after_steps(vlm.engine.model_runner.run, 3))
    answer = client.post(PATH, chat_request(stream=True))
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if line]
    assert '"error"' in lines[-1]
    assert API_KEY not in answer.text
    assert "[DONE]" not in answer.text
    monkeypatch.undo()
    assert client.post(PATH, chat_request()).status_code == 200


def fail_after_steps(run, steps):
    """Wraps `run`: after that many calls it raises an error whose message has the API key."""
    left = iter(range(steps))

    def running(plan):
        if next(left, None) is None:
            raise RuntimeError(API_KEY)
        return run(plan)

    return running


def test_uris_of_pictures_do_not_show_in_errors(client):
    wrong = picture_data_uri("door").replace("data:image/png;base64,", "data:image/png;base64,!!")
    answer = client.post(
        PATH, chat_request([user_message({"type": "image_url", "image_url": {"url": wrong}})])
    )
    assert answer.status_code == 400
    assert len(answer.text) < 500


def read_metrics(client):
    """The values of `/metrics` by name and labels."""
    rows = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in rows}


def test_metrics_count_what_happens(client, vlm):
    vlm.engine.clear_caches()
    before = read_metrics(client)
    picture = user_message(
        image_part("tower"), image_part("puppy"), text_part("Which of the two is the older one?")
    )
    first = client.post(PATH, chat_request([picture])).json()["usage"]
    assert client.post(PATH, chat_request([picture], stream=True)).status_code == 200
    gained = {name: value - before.get(name, 0) for name, value in read_metrics(client).items()}
    assert gained[f'idefics_requests_total{{path="{PATH}",status="200"}}'] == 2
    assert gained["idefics_prompt_tokens_total"] == 2 * first["prompt_tokens"]
    assert gained["idefics_completion_tokens_total"] == 2 * first["completion_tokens"]
    assert gained["idefics_time_to_first_token_seconds_count"] == 2
    assert gained["idefics_pictures_total"] == 4
    assert gained["idefics_pictures_encoded_total"] == 2
    assert (
        0.8 * first["prompt_tokens"] < gained["idefics_prompt_tokens_cached_total"] < first["prompt_tokens"]
    )
    after = read_metrics(client)
    assert (after["idefics_queue"], after["idefics_batch"]) == (0, 0)
    assert after["idefics_cache_pages_free"] < after["idefics_cache_pages"]
    assert after["idefics_picture_cache_bytes"] > 0


def test_a_slow_body_times_out(client, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_TIMEOUT", 0.2)

    async def drips():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    answer = client("POST", PATH, content=drips(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 408
    assert not client.app.state.service.admission.slots


def test_the_total_size_of_bodies_is_limited(vlm):
    client = SyncClient(create_app(vlm, Settings(model="demo", megabytes_at_once=1)))
    admission = client.app.state.service.admission
    other = admission.acquire_slot(lambda: None)
    admission.reserve(other, bytes=(1 << 20) - 500)
    refused = client.post(PATH, chat_request())
    assert refused.status_code == 429
    assert "bytes" in refused.json()["error"]["message"]
    admission.release_slot(other)
    assert client.post(PATH, chat_request()).status_code == 200
    assert admission.usage["bytes"] == 0


def test_a_client_that_does_not_read_is_disconnected(client, monkeypatch):
    monkeypatch.setattr(middleware, "CLIENT_READ_TIMEOUT", 0.2)
    body, said = json.dumps(chat_request(stream=True)).encode(), []

    async def receive():
        if not said:
            said.append("asked")
            return {"type": "http.request", "body": body}
        return await asyncio.sleep(60)

    async def send(message):
        said.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
    asyncio.run(client.app(scope, receive, send))
    assert said == ["asked", "http.response.start", "http.response.body"]
    service = client.app.state.service
    assert not service.admission.slots
    assert service.metrics.disconnected_clients._value.get() == 1
