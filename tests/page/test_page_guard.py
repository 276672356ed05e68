"""Which requests the page accepts."""

import json

import pytest
from starlette.testclient import TestClient

from idefics.processing.fetch import Fetcher


@pytest.fixture(scope="module")
def client(demo_model):
    from idefics.page.app import create_page_app
    from idefics.page.backend import PageSettings

    app = create_page_app(demo_model, PageSettings("demo", Fetcher(policy="any")))
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


def find_handler(client, target):
    """(number, inputs) of the handler of an event `(elem_id, event)`."""
    config = client.get("/config").json()
    ids = {one["id"]: one["props"].get("elem_id") for one in config["components"]}
    for one in config["dependencies"]:
        if any((ids.get(source), event) == target for source, event in one["targets"]):
            return one["id"], len(one["inputs"])
    raise AssertionError(f"nothing listens to {target}")


def request_cost(client, payload):
    """The response to a request for a picture's token cost with a forged payload."""
    number, inputs = find_handler(client, ("ask-picture", "change"))
    data = [payload, "high", *[None] * (inputs - 2)]
    body = {"data": data, "fn_index": number, "session_hash": "me", "event_data": None}
    return client.post("/gradio_api/queue/join", json=body)


def request_file(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def test_the_page_has_a_content_security_policy(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.g" not in answer.text


def test_uploaded_pictures_are_accepted(client, bundled_pictures):
    uploaded = client.post(
        "/gradio_api/upload", files={"files": bundled_pictures["tower.png"].read_bytes()}
    ).json()
    assert request_cost(client, request_file(uploaded[0], orig_name="tower.png")).status_code == 200


@pytest.mark.parametrize(
    "payload",
    [
        request_file("/etc/passwd"),
        request_file("relative.png"),
        request_file("/proc/self/environ"),
        request_file("{upload}/../../etc/passwd"),
        request_file("http://127.0.0.1:1/secret"),
        request_file("https://example.com/a.png"),
        request_file("\0"),
        request_file(17),
        {"url": "data:image/png;base64,AAAA", "path": None, "meta": {"_type": "gradio.FileData"}},
        [[{"deep": request_file("/etc/passwd")}]],
    ],
    ids=lambda payload: str(payload)[:40],
)
def test_files_that_were_not_uploaded_are_refused(client, payload):
    from gradio.utils import get_upload_folder

    text = json.dumps(payload).replace("{upload}", get_upload_folder())
    answer = request_cost(client, json.loads(text))
    assert answer.status_code == 400
    assert "root" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/file=https://example.com/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/file/etc/passwd",
        "/monitoring",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/docs",
    ],
)
def test_no_other_file_and_no_address_is_read(client, path):
    assert client.get(path).status_code in (403, 404)


@pytest.mark.parametrize(
    "path", ["/gradio_api/call/x", "/gradio_api/api/x", "/gradio_api/component_server", "/login"]
)
def test_paths_that_the_page_does_not_need_are_not_found(client, path):
    assert client.post(path, json={"data": []}).status_code == 404


def test_invalid_json_and_large_bodies_are_refused(client):
    headers = {"content-type": "application/json"}
    assert client.post("/gradio_api/queue/join", content=b"{", headers=headers).status_code == 400
    large = b'"' + b"x" * (17 << 20) + b'"'
    assert client.post("/gradio_api/queue/join", content=large, headers=headers).status_code == 413


def test_other_host_names_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_request_of_very_many_values_is_refused_before_it_is_parsed(client, monkeypatch):
    from idefics.page import request_filter

    body = b'{"data": [' + b"1," * request_filter.MAX_JSON_VALUES + b"1]}"
    monkeypatch.setattr(request_filter.json, "loads", lambda *_: pytest.fail("it was parsed"))
    assert client.post("/gradio_api/queue/join", content=body).status_code == 400
