"""Answers, events and errors match the OpenAPI description."""

import json
import re

import jsonschema_rs
import pytest

from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import SyncClient
from server.request_bodies import chat_request, parse_events, picture_data_uri

CHAT, COMPLETIONS, RESPONSES, TASKS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/images/tasks",
)
PICTURE = {"image_url": picture_data_uri("door")}
REQUESTS = [
    (CHAT, chat_request(max_tokens=2)),
    (
        CHAT,
        chat_request(
            n=2, logprobs=True, top_logprobs=3, temperature=1.0, response_format={"type": "json_object"}
        ),
    ),
    (COMPLETIONS, {"model": "demo", "prompt": "A"}),
    (COMPLETIONS, {"model": "demo", "prompt": "A", "logprobs": 3, "n": 2, "temperature": 1.0, "echo": True}),
    (RESPONSES, {"model": "demo", "input": "Hi", "max_output_tokens": 2}),
    (
        RESPONSES,
        {
            "model": "demo",
            "input": "Hi",
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "boolean"}}},
        },
    ),
    (f"{TASKS}/caption", PICTURE),
    (f"{TASKS}/complete", PICTURE | {"words": "A"}),
    (f"{TASKS}/ask", PICTURE | {"words": "What?", "num_beams": 2}),
    (f"{TASKS}/write", PICTURE),
    (f"{TASKS}/classify", PICTURE | {"labels": ["a", "b"], "calibrated": True}),
]


def check_against_schema(document, path, method, answer):
    """Validates a response with the schema of its route and status."""
    said = document["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = {**said["content"][kind]["schema"], "components": document["components"]}
    body = answer.json() if kind == "application/json" else answer.text
    jsonschema_rs.validator_for(schema).validate(body)


def check_events_against_schema(document, path, streamed):
    """Validates each event of a stream with the schema of its route."""
    content = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    schema = content["itemSchema"]["properties"]["data"]["contentSchema"]
    validator = jsonschema_rs.validator_for({**schema, "components": document["components"]})
    *events, last = parse_events(streamed.text)
    assert len(events) > 2
    for event in events if last == "[DONE]" else [*events, last]:
        validator.validate(event)


@pytest.fixture
def openapi_document(client):
    return client.get("/openapi.json").json()


@pytest.mark.parametrize(("path", "asked"), REQUESTS, ids=lambda value: str(value)[-30:])
def test_answers_and_errors_are_as_described(client, openapi_document, path, asked):
    answer = client.post(path, asked)
    assert answer.status_code == 200, answer.text
    check_against_schema(openapi_document, path, "post", answer)
    if "classify" not in path:
        streamed = client.post(path, asked | {"stream": True})
        assert streamed.status_code == 200
        check_against_schema(openapi_document, path, "post", streamed)
        check_events_against_schema(openapi_document, path, streamed)
    wrong = client.post(path, asked | {"foo": 1})
    assert wrong.status_code == 400
    check_against_schema(openapi_document, path, "post", wrong)


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics"])
def test_answers_of_status_routes_are_as_described(client, openapi_document, path):
    answer = client.get(path)
    assert answer.status_code == 200
    check_against_schema(openapi_document, path, "get", answer)
    if path != "/health":
        check_against_schema(
            openapi_document, path, "get", client.get(path, headers={"Host": "evil.example"})
        )
    if path == "/ready":
        client.app.state.service.admission.is_closing = True
        busy = client.get(path)
        assert busy.status_code == 503
        check_against_schema(openapi_document, path, "get", busy)


def test_a_model_is_as_described(client, openapi_document):
    for name, status in (("demo", 200), ("other", 404)):
        answer = client.get(f"/v1/models/{name}")
        assert answer.status_code == status
        check_against_schema(openapi_document, "/v1/models/{name}", "get", answer)


def test_invalid_requests_have_status_400_only(openapi_document):
    assert not [
        (path, method)
        for path, methods in openapi_document["paths"].items()
        for method, route in methods.items()
        if "422" in route["responses"]
    ]
    posts = [methods["post"] for methods in openapi_document["paths"].values() if "post" in methods]
    assert len(posts) == 12
    for route in posts:
        errors = {"400", "401", "403", "404", "408", "413", "415", "421", "429", "431", "500", "503"}
        assert set(route["responses"]) == {"200"} | errors
        for status in errors:
            schema = route["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_every_reference_of_the_description_resolves(client):
    text = client.get("/openapi.json").text
    document, found = json.loads(text), set(re.findall(r'"\$ref":\s*"([^"]+)"', text))
    assert found
    for reference in found:
        assert reference.startswith("#/components/schemas/"), reference
        assert reference.rpartition("/")[2] in document["components"]["schemas"]


def test_files_and_batches_are_as_described(vlm, tmp_path):
    client = SyncClient(create_app(vlm, Settings(model="demo", batches=tmp_path)))
    document = client.get("/openapi.json").json()
    upload = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}
    made = client.post("/v1/files", **upload)
    check_against_schema(document, "/v1/files", "post", made)
    file_id = made.json()["id"]
    good = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    batch = client.post("/v1/batches", good)
    check_against_schema(document, "/v1/batches", "post", batch)
    for path, name, id in (
        ("/v1/files", "file_id", file_id),
        ("/v1/batches", "batch_id", batch.json()["id"]),
    ):
        for method, suffix, query, status in (
            ("get", "", "", 200),
            ("get", "", "?limit=0", 400),
            ("get", f"/{{{name}}}", "", 200),
        ):
            answer = client(method.upper(), path + suffix.replace(f"{{{name}}}", id) + query)
            assert answer.status_code == status
            check_against_schema(document, path + suffix, method, answer)
        none = client.get(f"{path}/none")
        assert none.status_code == 404
        check_against_schema(document, f"{path}/{{{name}}}", "get", none)
    for method, path, answer in (
        ("post", "/v1/files", client.post("/v1/files")),
        ("post", "/v1/batches", client.post("/v1/batches", good | {"foo": 1})),
        ("post", "/v1/batches/{batch_id}/cancel", client.post("/v1/batches/none/cancel")),
        ("delete", "/v1/files/{file_id}", client("DELETE", f"/v1/files/{file_id}")),
        ("get", "/v1/files/{file_id}/content", client.get("/v1/files/none/content")),
    ):
        assert answer.status_code in (200, 400, 404)
        check_against_schema(document, path, method, answer)
    content = client.get(f"/v1/files/{file_id}/content")
    assert (content.status_code, content.content) == (200, b"{}")
