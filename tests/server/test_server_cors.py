"""CORS: allowed origins, preflights, headers of responses; other origins are refused."""

import base64

import pytest

from idefics.errors import BadSetting
from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import SyncClient
from server.request_bodies import chat_request

PATH = "/v1/chat/completions"
APP_ORIGIN, OTHER_ORIGIN = "https://app.example.com", "https://other.example.com"
AUTHORIZATION_HEADER = {"Authorization": "Bearer key"}
ALLOW_ORIGIN_HEADER, EXPOSE_HEADERS_HEADER = "access-control-allow-origin", "access-control-expose-headers"


def make_client(vlm, **settings):
    return SyncClient(create_app(vlm, Settings(model="demo", **settings)))


@pytest.fixture
def client_of_server_with_key(vlm):
    return make_client(vlm, api_key="key", allowed_origins=f"{APP_ORIGIN}, http://localhost:3000")


@pytest.fixture
def client_of_server_without_key(vlm):
    return make_client(vlm, allowed_origins=APP_ORIGIN)


def send_preflight(client, origin, path=PATH, **headers):
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    return client("OPTIONS", path, headers={"Origin": origin, **asks, **headers})


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/images/tasks/ask", "/health"])
def test_a_preflight_needs_no_key(client_of_server_with_key, path):
    answer = send_preflight(client_of_server_with_key, APP_ORIGIN, path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers[ALLOW_ORIGIN_HEADER] == APP_ORIGIN
    assert answer.headers["access-control-allow-methods"] == "DELETE, GET, HEAD, POST"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers, (
        "a key is sent on purpose, never by the browser"
    )


def test_pages_of_allowed_origins_can_read_answers_and_errors(client_of_server_with_key):
    answer = client_of_server_with_key.post(
        PATH, chat_request(), headers={"Origin": APP_ORIGIN, **AUTHORIZATION_HEADER}
    )
    assert (answer.status_code, answer.headers[ALLOW_ORIGIN_HEADER]) == (200, APP_ORIGIN)
    assert "x-request-id" in answer.headers[EXPOSE_HEADERS_HEADER]
    streamed = client_of_server_with_key.post(
        PATH, chat_request(stream=True), headers={"Origin": APP_ORIGIN, **AUTHORIZATION_HEADER}
    )
    assert (streamed.status_code, streamed.headers[ALLOW_ORIGIN_HEADER]) == (200, APP_ORIGIN)
    for status, refused in (
        (401, client_of_server_with_key.post(PATH, chat_request(), headers={"Origin": APP_ORIGIN})),
        (
            400,
            client_of_server_with_key.post(
                PATH, chat_request(foo=1), headers={"Origin": APP_ORIGIN, **AUTHORIZATION_HEADER}
            ),
        ),
        (
            404,
            client_of_server_with_key.get("/v1/none", headers={"Origin": APP_ORIGIN, **AUTHORIZATION_HEADER}),
        ),
    ):
        assert (refused.status_code, refused.headers[ALLOW_ORIGIN_HEADER]) == (status, APP_ORIGIN)


def test_a_preflight_of_another_origin_names_the_setting(
    client_of_server_with_key, client_of_server_without_key, client, vlm
):
    locked = make_client(vlm, api_key="key")
    for server in (client_of_server_with_key, client_of_server_without_key, client, locked):
        refused = send_preflight(server, OTHER_ORIGIN)
        assert refused.status_code == 403
        assert refused.json()["error"]["message"] == (
            f"cross-origin request from {OTHER_ORIGIN!r} refused: "
            f"start the server with --allowed-origins {OTHER_ORIGIN}"
        )
        assert ALLOW_ORIGIN_HEADER not in refused.headers


def test_origins_and_hosts_are_checked_without_a_key(client_of_server_without_key):
    assert (
        client_of_server_without_key.post(PATH, chat_request(), headers={"Origin": APP_ORIGIN}).headers[
            ALLOW_ORIGIN_HEADER
        ]
        == APP_ORIGIN
    )
    refused = client_of_server_without_key.post(PATH, chat_request(), headers={"Origin": OTHER_ORIGIN})
    assert refused.status_code == 403
    assert f"--allowed-origins {OTHER_ORIGIN}" in refused.json()["error"]["message"]
    assert (
        client_of_server_without_key.post(PATH, chat_request(), headers={"Origin": "null"}).status_code == 403
    )
    rebound = client_of_server_without_key.post(
        PATH, chat_request(), headers={"Origin": APP_ORIGIN, "Host": "evil.example.com"}
    )
    assert rebound.status_code == 421, "an allowed page still calls the server by its own name"
    own = client_of_server_without_key.post(PATH, chat_request(), headers={"Origin": "http://localhost"})
    assert own.status_code == 200
    assert ALLOW_ORIGIN_HEADER not in own.headers


def test_a_form_of_another_website_cannot_use_the_password_of_a_browser(client_of_server_with_key):
    password = {"Authorization": "Basic " + base64.b64encode(b"me:key").decode()}
    for origin, status in (
        (OTHER_ORIGIN, 403),
        ("null", 403),
        (APP_ORIGIN, 200),
        ("http://pictures.example:8000", 200),
        (None, 200),
    ):
        headers = {"Host": "pictures.example:8000", **password, **({"Origin": origin} if origin else {})}
        assert client_of_server_with_key.post(PATH, chat_request(), headers=headers).status_code == status
    headers = {"Origin": OTHER_ORIGIN, **AUTHORIZATION_HEADER}  # which no browser sends by itself
    assert client_of_server_with_key.post(PATH, chat_request(), headers=headers).status_code == 200


def test_all_origins_need_a_key(vlm):
    with pytest.raises(BadSetting, match="allowed_origins is \\* without a key"):
        Settings(allowed_origins="*")
    everyone = make_client(vlm, api_key="key", allowed_origins="*")
    for origin in (APP_ORIGIN, "null"):
        assert send_preflight(everyone, origin).headers[ALLOW_ORIGIN_HEADER] == "*"
        assert (
            everyone.get("/v1/models", headers={"Origin": origin, **AUTHORIZATION_HEADER}).headers[
                ALLOW_ORIGIN_HEADER
            ]
            == "*"
        )
    assert everyone.get("/v1/models", headers={"Origin": APP_ORIGIN}).status_code == 401


def test_origins_are_compared_as_browsers_send_them(vlm):
    written = "https://App.Example.com:443/, http://box:80,http://[::1]:3000, chrome-extension://abc"
    client = make_client(vlm, api_key="key", allowed_origins=written)
    for origin in (APP_ORIGIN, "http://box", "http://[::1]:3000", "chrome-extension://abc"):
        assert send_preflight(client, origin).status_code == 204
    for origin in (f"{APP_ORIGIN}:444", "http://app.example.com", "https://app.example.com.evil.com", "null"):
        assert send_preflight(client, origin).status_code == 403


@pytest.mark.parametrize(
    "wrong", ["app.example.com", "https://*.example.com", "https://a.com/path", "null", "https://"]
)
def test_an_invalid_origin_is_refused(wrong):
    with pytest.raises(BadSetting, match="allowed_origins has"):
        Settings(api_key="key", allowed_origins=wrong)


def test_a_public_page_may_access_a_private_network(client_of_server_with_key):
    answer = send_preflight(
        client_of_server_with_key, APP_ORIGIN, **{"Access-Control-Request-Private-Network": "true"}
    )
    assert answer.headers["access-control-allow-private-network"] == "true"


def test_requested_header_names_forge_no_header(client_of_server_with_key):
    answer = send_preflight(
        client_of_server_with_key, APP_ORIGIN, **{"Access-Control-Request-Headers": "a;b<c>"}
    )
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type, x-request-id"


def test_options_without_an_origin_is_no_preflight(client):
    assert client("OPTIONS", PATH).status_code == 405


def test_no_cors_headers_without_the_setting(client):
    headers = client.get("/v1/models", headers={"Origin": "http://localhost:3000"}).headers
    assert not [name for name in headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize(
    "wrong", ["box:8000", "ftp://box", "*", "http://box/v1", "http://a;script-src", "http://[::1]"]
)
def test_addresses_to_compare_with_are_checked(wrong):
    with pytest.raises(BadSetting, match="compare_with has"):
        Settings(compare_with=f"http://good:1,{wrong}")
