"""Large requests are refused before they are parsed or tokenized; long texts do not delay other requests."""

import asyncio
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.processing.tokenizer import Tokenizer
from idefics.server import routing, server_state
from idefics.server.errors import APIError
from idefics.server.routing import MAX_JSON_VALUES, check_num_values
from server.request_bodies import chat_request, image_part, picture_data_uri, text_part, user_message
from server.test_server_live import run_server, wait_until

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TASKS = "/v1/images/tasks/"
PICTURE = {"image_url": picture_data_uri("door")}
MEGABYTE_TEXT = "word " * 200_000


@pytest.fixture
def forbid_tokenizing(monkeypatch):
    """Makes every call of the tokenizer fail."""
    monkeypatch.setattr(Tokenizer, "encode_pieces", lambda *_, **__: pytest.fail("it was tokenized"))


REQUESTS_WITH_LONG_TEXT = [
    (CHAT, chat_request([user_message(text_part(MEGABYTE_TEXT))])),
    (
        CHAT,
        chat_request(
            [
                user_message(text_part("Hi")),
                {"role": "assistant", "content": MEGABYTE_TEXT},
                user_message(text_part("Hi")),
            ]
        ),
    ),
    (
        CHAT,
        chat_request(
            [{"role": "system", "content": MEGABYTE_TEXT}, user_message(image_part("door"), text_part("Hi"))],
            stream=True,
        ),
    ),
    (CHAT, chat_request([user_message(text_part("word " * 400)) for _ in range(500)])),
    (COMPLETIONS, {"model": "demo", "prompt": MEGABYTE_TEXT}),
    (COMPLETIONS, {"model": "demo", "prompt": MEGABYTE_TEXT, "echo": True, "stream": True}),
    (
        COMPLETIONS,
        {"model": "demo", "prompt": ["Hi", MEGABYTE_TEXT], "echo": True, "logprobs": 1, "max_tokens": 0},
    ),
    (RESPONSES, {"model": "demo", "input": MEGABYTE_TEXT}),
    (RESPONSES, {"model": "demo", "input": [{"role": "user", "content": MEGABYTE_TEXT}]}),
    (RESPONSES, {"model": "demo", "input": "Hi", "instructions": MEGABYTE_TEXT}),
    (TASKS + "ask", {**PICTURE, "words": MEGABYTE_TEXT}),
    (TASKS + "complete", {**PICTURE, "words": MEGABYTE_TEXT}),
    (TASKS + "write", {**PICTURE, "words": MEGABYTE_TEXT}),
    (TASKS + "caption", {**PICTURE, "shots": [{**PICTURE, "answer": MEGABYTE_TEXT}]}),
    (
        TASKS + "ask",
        {**PICTURE, "words": "Hi", "shots": [{**PICTURE, "question": MEGABYTE_TEXT, "answer": "a"}]},
    ),
    (TASKS + "classify", {**PICTURE, "labels": ["a", "b"], "shots": [{**PICTURE, "answer": MEGABYTE_TEXT}]}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS_WITH_LONG_TEXT)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(client, forbid_tokenizing, path, body):
    answer = client.post(path, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert (
        "characters, which are more than the 1,024 tokens that this model reads (at most 25,600"
        in error["message"]
    )
    assert error["message"].endswith("send less text")


def test_a_long_text_in_a_form_is_refused_before_it_is_tokenized(client, forbid_tokenizing):
    form = {"data": {"words": MEGABYTE_TEXT}, "files": {"image": b"anything"}}
    answer = client("POST", TASKS + "ask", **form)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


LONG_VALUE_BY_FIELD = {
    "stop": MEGABYTE_TEXT,
    "banned": [MEGABYTE_TEXT],
    "regex": MEGABYTE_TEXT,
    "choices": [MEGABYTE_TEXT, "a"],
    "user": MEGABYTE_TEXT,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"description": MEGABYTE_TEXT}}},
    "logit_bias": {MEGABYTE_TEXT: 1},
}


@pytest.mark.parametrize("field", LONG_VALUE_BY_FIELD)
def test_other_texts_have_limits(client, forbid_tokenizing, field):
    answer = client.post(CHAT, chat_request(**{field: LONG_VALUE_BY_FIELD[field]}))
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert len(answer.text) < 1000


def test_labels_have_a_limit(client, forbid_tokenizing):
    answer = client.post(TASKS + "classify", {**PICTURE, "labels": ["a", "b" * 1025]})
    assert "labels[1]: string should have at most 1024 characters" in answer.json()["error"]["message"]


REQUESTS_WITH_MANY_VALUES = [
    chat_request(foo=[1] * MAX_JSON_VALUES),
    chat_request(**{f"f{number}": 1 for number in range(MAX_JSON_VALUES)}),
    chat_request([1] * MAX_JSON_VALUES),
    chat_request(metadata={str(number): "a" for number in range(MAX_JSON_VALUES)}),
    chat_request(
        response_format={"type": "json_schema", "json_schema": {"schema": {"enum": [[]] * MAX_JSON_VALUES}}}
    ),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TASKS + "caption"])
@pytest.mark.parametrize("body", REQUESTS_WITH_MANY_VALUES, ids=range(len(REQUESTS_WITH_MANY_VALUES)))
def test_many_values_are_refused_before_they_are_parsed(client, monkeypatch, path, body):
    data = json.dumps(body).encode()
    monkeypatch.setattr(routing.json, "loads", lambda *_: pytest.fail("it was parsed"))
    answer = client("POST", path, content=data, headers={"Content-Type": "application/json"})
    monkeypatch.undo()
    assert answer.status_code == 400
    assert "more than 20,000 JSON values" in answer.json()["error"]["message"]


def test_many_values_in_a_form_are_refused_before_they_are_parsed(client):
    form = {
        "data": {"words": "a", "shots": "[" + "1," * MAX_JSON_VALUES + "1]"},
        "files": {"image": b"anything"},
    }
    answer = client("POST", TASKS + "ask", **form)
    assert "more than 20,000 JSON values" in answer.json()["error"]["message"]


def test_many_unknown_fields_are_one_error(client):
    answer = client.post(
        CHAT, chat_request([{"role": "user", "content": "a", **{f"f{n}": 1 for n in range(65)}}])
    )
    assert answer.json()["error"]["message"].endswith("65 of its fields are unknown: leave them out")


def test_deep_nesting_is_refused(client):
    body = b'{"messages":' + b"[" * 19_000
    answer = client("POST", CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


json_leaves = st.one_of(st.none(), st.integers(0, 9), st.text('",[{}]\\:x\n', max_size=8))
json_trees = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\,', max_size=3), inner),
)


def count_values(value):
    """The number of characters that come before values: commas, and opening brackets of lists and objects."""
    if isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return 1 + max(len(inner) - 1, 0) + sum(map(count_values, inner))
    return 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=json_trees)
def test_values_are_counted_without_the_contents_of_texts(value):
    body, many = json.dumps(value).encode(), count_values(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "MAX_JSON_VALUES", max(many, 1))
        check_num_values(body)
        if many > 1:
            patch.setattr(routing, "MAX_JSON_VALUES", many - 1)
            with pytest.raises(APIError):
                check_num_values(body)


def test_a_text_full_of_placeholders_is_only_text():
    check_num_values(json.dumps(chat_request([user_message(text_part('[{,"\\' * 100_000))])).encode())


def test_long_texts_do_not_delay_short_ones(vlm, monkeypatch):
    monkeypatch.setattr(server_state, "LONG_TEXT_CHARACTERS", 1000)
    going_on = threading.Event()
    long = chat_request([user_message(text_part("word " * 250))], max_tokens=1)

    async def scene():
        async with run_server(vlm) as (client, service):
            service.long_text_pool.submit(going_on.wait, 30)
            asked = [asyncio.create_task(client.post(CHAT, json=long)) for _ in range(20)]
            await wait_until(lambda: service.long_text_pool._work_queue.qsize() == 20)
            assert (await client.post(CHAT, json=chat_request(max_tokens=1))).status_code == 200
            assert not any(task.done() for task in asked)
            going_on.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 20

    asyncio.run(scene())
