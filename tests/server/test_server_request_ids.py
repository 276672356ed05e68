"""Every response has an id, which the log and the bodies of errors have too."""

import asyncio
import logging
import re

import pytest

from idefics.server import uvicorn_server
from server.request_bodies import chat_request, parse_events
from server.test_server_live import run_server

PATH = "/v1/chat/completions"
REQUEST_ID_HEADER = "x-request-id"
GENERATED_ID_PATTERN = re.compile(r"req_[0-9a-f]{32}")


def log_lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "idefics.server.access"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/v1/models", None, 200),
        ("GET", "/none", None, 404),
        ("DELETE", PATH, None, 405),
        ("POST", PATH, chat_request(), 200),
        ("POST", PATH, chat_request(stream=True), 200),
        ("POST", PATH, chat_request(foo=1), 400),
        ("POST", "/v1/images/tasks/ask", {"words": "a"}, 400),
    ],
)
def test_each_response_has_its_own_id(client, caplog, method, path, body, status):
    caplog.set_level(logging.INFO)
    answers = [client(method, path, json=body) for _ in range(2)]
    ids = [answer.headers[REQUEST_ID_HEADER] for answer in answers]
    assert [answer.status_code for answer in answers] == [status] * 2
    assert all(GENERATED_ID_PATTERN.fullmatch(id) for id in ids)
    assert ids[0] != ids[1]
    assert [line.split()[-1] for line in log_lines(caplog)] == ids
    if status >= 400:
        assert [answer.json()["error"]["request_id"] for answer in answers] == ids


@pytest.mark.parametrize("id", ["a", "req_123", "4bf92f35-77b3:1/2+3=@x._", "a" * 128])
def test_the_clients_id_is_kept(client, caplog, id):
    caplog.set_level(logging.INFO)
    answer = client.post(PATH, chat_request(foo=1), headers={REQUEST_ID_HEADER: id})
    assert answer.headers.get_list(REQUEST_ID_HEADER) == [id]
    assert answer.json()["error"]["request_id"] == id
    assert log_lines(caplog)[0].endswith(f" ms {id}")


@pytest.mark.parametrize("id", ["", "a b", "a" * 129, "é".encode(), 'a"b', "%0a\t"])
def test_ids_that_could_forge_log_lines_are_replaced(client, id):
    answer = client.get("/health", headers={REQUEST_ID_HEADER: id})
    assert GENERATED_ID_PATTERN.fullmatch(answer.headers[REQUEST_ID_HEADER])


def test_unexpected_errors_are_logged_with_the_id(client, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(client.app.state.service.vlm, "prompt", broken)
    answer = client.post(PATH, chat_request())
    id = answer.headers[REQUEST_ID_HEADER]
    assert answer.json()["error"]["request_id"] == id
    assert f"RuntimeError in request {id}" in caplog.text


def test_errors_of_streams_have_the_id(client, vlm, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(vlm.engine.model_runner, "run", broken)
    answer = client.post(PATH, chat_request(stream=True))
    assert answer.status_code == 200
    assert parse_events(answer.text)[-1]["error"]["request_id"] == answer.headers[REQUEST_ID_HEADER]


def test_concurrent_requests_have_their_own_ids(vlm):
    async def scene():
        async with run_server(vlm) as (client, _):
            asked = [
                client.post(PATH, json=chat_request(foo=1), headers={REQUEST_ID_HEADER: f"id-{n}"})
                for n in range(8)
            ]
            for number, answer in enumerate(await asyncio.gather(*asked)):
                assert (
                    answer.headers[REQUEST_ID_HEADER]
                    == answer.json()["error"]["request_id"]
                    == f"id-{number}"
                )

    asyncio.run(scene())


def test_invalid_http_gets_an_id(vlm, caplog):
    caplog.set_level(logging.INFO, uvicorn_server.log.name)

    async def scene():
        async with run_server(vlm) as (client, _):
            reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
            writer.write(b"HELLO\r\n\r\n")
            said = (await reader.read()).decode()
            writer.close()
            return said

    said = asyncio.run(scene())
    assert said.startswith("HTTP/1.1 400 Bad Request\r\n")
    id = re.search(rf"{REQUEST_ID_HEADER}: ({GENERATED_ID_PATTERN.pattern})\r\n", said)[1]
    assert f'"request_id": "{id}"' in said
    assert log_lines(caplog) == [f"127.0.0.1 - (no HTTP) 400 - {id}"]


def test_the_description_has_the_header(client):
    described = client.get("/openapi.json").json()
    for route in described["paths"].values():
        for method in route.values():
            assert all(REQUEST_ID_HEADER in answer["headers"] for answer in method["responses"].values())
    assert "request_id" in described["components"]["schemas"]["ErrorField"]["required"]
