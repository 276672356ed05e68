"""Pages of other origins: which may ask, what their browser is told, and that the guards hold for the rest."""

import pytest

from idefics.errors import BadSetting
from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.asking import chat
from server.conftest import Client

PATH = "/v1/chat/completions"
APP, OTHER = "https://app.example.com", "https://other.example.com"
KEY = {"Authorization": "Bearer key"}
ALLOW, EXPOSE = "access-control-allow-origin", "access-control-expose-headers"


def made(vlm, **settings):
    return Client(create_app(vlm, Settings(model="demo", **settings)))


@pytest.fixture
def keyed(vlm):
    return made(vlm, api_key="key", allowed_origins=f"{APP}, http://localhost:3000")


@pytest.fixture
def keyless(vlm):
    return made(vlm, allowed_origins=APP)


def preflight(client, origin, path=PATH, **headers):
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    return client("OPTIONS", path, headers={"Origin": origin, **asks, **headers})


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/images/tasks/ask", "/health"])
def test_a_preflight_is_answered_without_the_key(keyed, path):
    answer = preflight(keyed, APP, path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers[ALLOW] == APP
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers, (
        "a key is sent on purpose, never by the browser"
    )


def test_a_page_that_may_ask_can_read_answers_and_errors(keyed):
    answer = keyed.post(PATH, chat(), headers={"Origin": APP, **KEY})
    assert (answer.status_code, answer.headers[ALLOW]) == (200, APP)
    assert "x-request-id" in answer.headers[EXPOSE]
    streamed = keyed.post(PATH, chat(stream=True), headers={"Origin": APP, **KEY})
    assert (streamed.status_code, streamed.headers[ALLOW]) == (200, APP)
    for status, refused in (
        (401, keyed.post(PATH, chat(), headers={"Origin": APP})),
        (400, keyed.post(PATH, chat(foo=1), headers={"Origin": APP, **KEY})),
        (404, keyed.get("/v1/none", headers={"Origin": APP, **KEY})),
    ):
        assert (refused.status_code, refused.headers[ALLOW]) == (status, APP)


def test_a_preflight_of_another_page_is_told_the_setting(keyed, keyless, client, vlm):
    locked = made(vlm, api_key="key")
    for server in (keyed, keyless, client, locked):
        refused = preflight(server, OTHER)
        assert refused.status_code == 403
        assert refused.json()["error"]["message"] == (
            f"pages of {OTHER!r} may not ask this server: start it with --allowed-origins {OTHER}"
        )
        assert ALLOW not in refused.headers


def test_the_guards_hold_without_a_key(keyless):
    assert keyless.post(PATH, chat(), headers={"Origin": APP}).headers[ALLOW] == APP
    refused = keyless.post(PATH, chat(), headers={"Origin": OTHER})
    assert refused.status_code == 403
    assert f"--allowed-origins {OTHER}" in refused.json()["error"]["message"]
    assert keyless.post(PATH, chat(), headers={"Origin": "null"}).status_code == 403
    rebound = keyless.post(PATH, chat(), headers={"Origin": APP, "Host": "evil.example.com"})
    assert rebound.status_code == 421, "an allowed page still calls the server by its own name"
    own = keyless.post(PATH, chat(), headers={"Origin": "http://localhost"})
    assert own.status_code == 200
    assert ALLOW not in own.headers


def test_all_origins_need_a_key(vlm):
    with pytest.raises(BadSetting, match="allowed_origins is \\*, and there is no key"):
        Settings(allowed_origins="*")
    everyone = made(vlm, api_key="key", allowed_origins="*")
    for origin in (APP, "null"):
        assert preflight(everyone, origin).headers[ALLOW] == "*"
        assert everyone.get("/v1/models", headers={"Origin": origin, **KEY}).headers[ALLOW] == "*"
    assert everyone.get("/v1/models", headers={"Origin": APP}).status_code == 401


def test_origins_are_compared_as_browsers_spell_them(vlm):
    written = "https://App.Example.com:443/, http://box:80,http://[::1]:3000, chrome-extension://abc"
    client = made(vlm, api_key="key", allowed_origins=written)
    for origin in (APP, "http://box", "http://[::1]:3000", "chrome-extension://abc"):
        assert preflight(client, origin).status_code == 204
    for origin in (f"{APP}:444", "http://app.example.com", "https://app.example.com.evil.com", "null"):
        assert preflight(client, origin).status_code == 403


@pytest.mark.parametrize(
    "wrong", ["app.example.com", "https://*.example.com", "https://a.com/path", "null", "https://"]
)
def test_what_is_no_origin_is_told(wrong):
    with pytest.raises(BadSetting, match="allowed_origins has"):
        Settings(api_key="key", allowed_origins=wrong)


def test_a_public_page_may_ask_this_machine(keyed):
    answer = preflight(keyed, APP, **{"Access-Control-Request-Private-Network": "true"})
    assert answer.headers["access-control-allow-private-network"] == "true"


def test_what_a_page_asks_for_forges_no_header(keyed):
    answer = preflight(keyed, APP, **{"Access-Control-Request-Headers": "a;b<c>"})
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-request-id"


def test_options_without_an_origin_is_an_ordinary_request(client):
    assert client("OPTIONS", PATH).status_code == 405


def test_without_the_setting_no_answer_speaks_of_origins(client):
    headers = client.get("/v1/models", headers={"Origin": "http://localhost:3000"}).headers
    assert not [name for name in headers if name.startswith("access-control") or name == "vary"]
