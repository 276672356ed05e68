"""`/v1/files` and `/v1/batches`, called by OpenAI's client: answers are those of live requests."""

import openai
import pytest

from clients.conftest import run_server, strict_client
from server.batch_requests import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    batch_line,
    begin,
    read_lines,
    run_client,
    to_jsonl,
    wait_for,
)
from server.request_bodies import chat_request, image_part, text_part, user_message


@pytest.fixture(scope="module")
def client(vlm, tmp_path_factory):
    with run_client(vlm, tmp_path_factory.mktemp("batches")) as (client, _):
        yield client


def within_rounding(value):
    """What JSON equals whose numbers differ by rounding alone: products of more rows at once sum in another order."""
    if isinstance(value, dict):
        return {name: within_rounding(one) for name, one in value.items()}
    if isinstance(value, list):
        return [within_rounding(one) for one in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def test_each_line_is_answered_as_a_live_request(client):
    bodies = [
        chat_request(max_tokens=4),
        chat_request(
            [user_message(image_part("door"), text_part("What is it?"))], max_tokens=3, logprobs=True
        ),
        chat_request([user_message(text_part("Hi"))], temperature=1.0, seed=3, n=2, max_tokens=3),
    ]
    batch = begin(
        client, [batch_line(f"line-{i}", body) for i, body in enumerate(bodies)], metadata={"a": "b"}
    )
    assert (batch.object, batch.endpoint, batch.status) == ("batch", CHAT, "validating")
    assert batch.metadata == {"a": "b"}
    batch = wait_for(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.expires_at == batch.created_at + 24 * 3600
    assert (batch.error_file_id, batch.errors) == (None, None)
    answers = read_lines(client, batch.output_file_id)
    usages = [line["response"]["body"]["usage"] for line in answers.values()]
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages) > 0
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    for i, body in enumerate(bodies):
        line = answers[f"line-{i}"]
        assert line["error"] is None
        assert line["id"].startswith("batch_req_")
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"].startswith("req_")
        live = client.chat.completions.with_raw_response.create(**body).http_response.json()
        assert line["response"]["body"]["choices"] == within_rounding(live["choices"])


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [(COMPLETIONS, {"model": "demo", "prompt": "A"}), (RESPONSES, {"model": "demo", "input": "Hi"})],
)
def test_other_endpoints(client, endpoint, body):
    batch = wait_for(client, begin(client, [batch_line("one", body, endpoint)], endpoint))
    (line,) = read_lines(client, batch.output_file_id).values()
    create = client.completions.create if endpoint == COMPLETIONS else client.responses.create
    live, answer = create(**body), line["response"]["body"]
    if endpoint == COMPLETIONS:
        assert answer["choices"][0]["text"] == live.choices[0].text
    else:
        assert answer["output"][0]["content"][0]["text"] == live.output_text
        assert batch.usage.output_tokens == live.usage.output_tokens


def test_a_refused_line_has_the_error_of_a_live_request_in_its_body(client):
    lines = [
        batch_line("good"),
        batch_line("no model", chat_request() | {"model": "other"}),
        batch_line("no such field", chat_request(temprature=1)),
        batch_line(
            "far away",
            chat_request(
                [user_message({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}})]
            ),
        ),
    ]
    batch = wait_for(client, begin(client, lines))
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 1, "failed": 3}
    assert read_lines(client, batch.output_file_id).keys() == {"good"}
    errors = read_lines(client, batch.error_file_id)
    assert errors.keys() == {"no model", "no such field", "far away"}
    for line in lines[1:]:
        with pytest.raises(openai.APIStatusError) as refused:
            client.post(CHAT.removeprefix("/v1"), body=line["body"], cast_to=object)
        error = errors[line["custom_id"]]
        assert error["error"] is None
        response = error["response"]
        assert response["status_code"] == refused.value.status_code
        assert response["body"]["error"].pop("request_id") == response["request_id"]
        live = refused.value.response.json()["error"]
        del live["request_id"]
        assert response["body"]["error"] == live


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ("{", "invalid_json_line", None),
        ("[]", "invalid_json_line", None),
        ('{"custom_id": "b", "body": ' + "[" * 50_000, "invalid_json_line", None),
        (batch_line("a"), "duplicate_custom_id", "custom_id"),
        (batch_line(""), "invalid_custom_id", "custom_id"),
        (batch_line(7), "invalid_custom_id", "custom_id"),
        (batch_line("\ud800"), "invalid_custom_id", "custom_id"),
        (batch_line("b", method="GET"), "invalid_method", "method"),
        (batch_line("b", url="/v1/embeddings"), "invalid_url", "url"),
        (batch_line("b", url=COMPLETIONS), "url_mismatch", "url"),
        (batch_line("b", body=[1]), "invalid_body", "body"),
        (batch_line("b", chat_request(stream=True)), "invalid_request", "body.stream"),
        ({"custom_id": "b"}, "missing_required_parameter", "method"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_line_fails_the_batch_with_its_number(client, line, code, param):
    batch = wait_for(client, begin(client, [batch_line("a"), "", line, batch_line("c")]))
    assert batch.status == "failed"
    assert batch.failed_at >= batch.created_at
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    (error,) = batch.errors.data
    assert (error.line, error.code, error.param) == (3, code, param)


def test_a_file_without_lines_fails_the_batch(client):
    batch = wait_for(client, begin(client, ["", "  "]))
    assert [(error.code, error.line) for error in batch.errors.data] == [("empty_file", None)]


def test_a_batch_needs_a_file_and_the_known_values(client):
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    good = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for wrong, param in (
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            client.batches.create(**good | wrong)
        assert refused.value.status_code == (404 if param == "input_file_id" else 400)
        assert refused.value.param == param or param.startswith("metadata")


def test_files_are_listed_described_read_and_deleted(client):
    content = to_jsonl([batch_line("ä")])
    file = client.files.create(
        file=("../ä.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.object, file.purpose, file.bytes, file.status) == (
        "file",
        "batch",
        len(content),
        "processed",
    )
    assert file.expires_at == file.created_at + 3600
    assert "/" not in file.filename
    second = client.files.create(file=("b.jsonl", b"x\n"), purpose="batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    assert [one.id for one in client.files.list(limit=1).data] == [second.id]
    found = [one.id for one in client.files.list(limit=1, order="desc")]  # page by page
    assert found[:2] == [second.id, file.id]
    assert len(found) == len(set(found))
    assert [one.id for one in client.files.list(order="asc").data] == found[::-1]
    assert not client.files.list(purpose="vision").data
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="there is no file"):
            call(file.id)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"data": {"purpose": "batch"}}, "no file"),
        ({"data": {"purpose": "vision"}, "files": {"file": b"x"}}, "purpose is 'vision'"),
        ({"data": {"purpose": "batch", "a": "b"}, "files": {"file": b"x"}}, "unknown field: a"),
        ({"data": {"purpose": "batch", "expires_after[seconds]": "7"}, "files": {"file": b"x"}}, "3,600"),
        ({"json": {"purpose": "batch"}}, "no file"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "cannot be read"),
    ],
    ids=["no file", "purpose", "unknown", "expiry", "json", "broken"],
)
def test_invalid_uploads_are_refused(client, form, words):
    answer = client._client.post("/files", **form)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_batches_are_listed_page_by_page(client):
    batches = [wait_for(client, begin(client, ["{"])).id for _ in range(3)]
    assert [one.id for one in client.batches.list(limit=2).data] == batches[:0:-1]
    assert [one.id for one in client.batches.list(limit=1, after=batches[2]).data] == [batches[1]]
    assert [one.id for one in client.batches.list(limit=1)][:3] == batches[::-1]
    with pytest.raises(openai.BadRequestError, match="not in the list"):
        client.batches.list(after="batch_none")


def test_a_batch_that_ended_cannot_be_cancelled(client):
    batch = wait_for(client, begin(client, ["{"]))
    with pytest.raises(openai.BadRequestError, match="is failed"):
        client.batches.cancel(batch.id)
    with pytest.raises(openai.NotFoundError, match="there is no batch"):
        client.batches.cancel("batch_none")


def test_without_a_folder_there_are_no_files_and_batches(vlm):
    with run_server(vlm) as (url, _), strict_client(url) as client:
        for call in (client.files.list, client.batches.list, lambda: client.files.retrieve("file-a")):
            with pytest.raises(openai.NotFoundError, match="--batches FOLDER"):
                call()
