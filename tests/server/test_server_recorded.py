"""Recorded requests of client packages have the same answers as calls of the Python library."""

import json

import pytest

from clients.recording import ENVIRONMENT_BY_PROGRAM, PROGRAMS_FOLDER, RECORDED_FOLDER, read_recorded_requests
from idefics.messages import Message, Picture
from server.request_bodies import parse_events

SHAPE_NAMES = {"circle", "square"}


def content_parts(content):
    """The texts and pictures of a message's content, in the format of either route."""
    if isinstance(content, str):
        return [content]
    urls = [part.get("image_url") for part in content]
    urls = [url["url"] if isinstance(url, dict) else url for url in urls]
    return [Picture(url) if url else part["text"] for url, part in zip(urls, content, strict=True)]


def expected_answer(vlm, body):
    """The Python library's answer to the same texts and pictures."""
    if "prompt" in body:
        text = body["prompt"] if isinstance(body["prompt"], str) else body["prompt"][0]
        return f" {vlm.generate([text], max_new_tokens=body['max_tokens']).text}"
    turns = body.get("messages") or body["input"]
    turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    return vlm.chat([Message(turn["role"], tuple(content_parts(turn["content"]))) for turn in turns]).text


def answer_texts(answer):
    """The text of each choice of an answer of any route, streamed or not."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        if "output" in body:
            return [part["text"] for item in body["output"] for part in item["content"]]
        return [
            choice["message"]["content"] if "message" in choice else choice["text"]
            for choice in body["choices"]
        ]
    *told, last = parse_events(answer.text)
    if last == "[DONE]":
        deltas = [choice["delta"] for chunk in told for choice in chunk["choices"]]
        return ["".join(delta.get("content", "") for delta in deltas)]
    assert last["type"] == "response.completed"
    return ["".join(one["delta"] for one in told if one["type"] == "response.output_text.delta")]


@pytest.mark.parametrize("name", ENVIRONMENT_BY_PROGRAM)
def test_recorded_requests_are_answered(client, vlm, name):
    requests = read_recorded_requests(name)
    assert requests
    for request in requests:
        answer = client.post(request["path"], request["body"])
        assert answer.status_code == 200, answer.text
        said = json.dumps(request["body"])
        for text in answer_texts(answer):
            if "json_schema" in said or "json_object" in said:
                assert json.loads(text)["shape"] in SHAPE_NAMES
            else:
                assert text == expected_answer(vlm, request["body"])


def test_records_have_the_fields_that_clients_send():
    """The records have the fields for which the server once refused these clients."""
    said = {name: (RECORDED_FOLDER / f"{name}.json").read_text() for name in ENVIRONMENT_BY_PROGRAM}
    for name, field in (
        ("openai_agents", '"tools": []'),
        ("llama_index_llms", '"previous_response_id": null'),
        ("strands_agents", '"format": "image/png"'),
        ("hub_inference", '"tool_call_id": null'),
        ("openai_package", '"parsed": {'),
        ("docling_api", '"skip_special_tokens": true'),
        ("litellm_library", '"cache_control": {'),
        ("litellm_library", '"tools": []'),
        ("litellm_proxy", '"tools": []'),
    ):
        assert field in said[name], name


def test_every_program_has_an_environment_and_a_record():
    programs = {path.stem for path in PROGRAMS_FOLDER.glob("*.py")} - {"program_setup", "lmms_eval_model"}
    assert programs == set(ENVIRONMENT_BY_PROGRAM) == {path.stem for path in RECORDED_FOLDER.glob("*.json")}
    # lmms-eval runs a model in its own process: no request is recorded.
    assert {*ENVIRONMENT_BY_PROGRAM.values(), "lmms_eval"} == {
        path.stem for path in (PROGRAMS_FOLDER.parent / "environments").glob("*.txt")
    }
