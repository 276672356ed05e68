"""What is large is refused by its size, before it is parsed or tokenized; what is long and allowed holds up nobody."""

import asyncio
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.processing.tokenizer import Tokenizer
from idefics.server import bodies, visit
from idefics.server.bodies import MOST_VALUES, check_num_values
from idefics.server.faults import Fault
from server.asking import chat, data_uri, said, shown, user
from server.test_server_live import served, until

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TASKS = "/v1/images/tasks/"
PICTURE = {"image_url": data_uri("door")}
LONG = "word " * 200_000


@pytest.fixture
def never_tokenized(monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_pieces", lambda *_, **__: pytest.fail("it was tokenized"))


TEXTS = [
    (CHAT, chat([user(said(LONG))])),
    (CHAT, chat([user(said("Hi")), {"role": "assistant", "content": LONG}, user(said("Hi"))])),
    (CHAT, chat([{"role": "system", "content": LONG}, user(shown("door"), said("Hi"))], stream=True)),
    (CHAT, chat([user(said("word " * 400)) for _ in range(500)])),
    (COMPLETIONS, {"model": "demo", "prompt": LONG}),
    (COMPLETIONS, {"model": "demo", "prompt": LONG, "echo": True, "stream": True}),
    (COMPLETIONS, {"model": "demo", "prompt": ["Hi", LONG], "echo": True, "logprobs": 1, "max_tokens": 0}),
    (RESPONSES, {"model": "demo", "input": LONG}),
    (RESPONSES, {"model": "demo", "input": [{"role": "user", "content": LONG}]}),
    (RESPONSES, {"model": "demo", "input": "Hi", "instructions": LONG}),
    (TASKS + "ask", {**PICTURE, "words": LONG}),
    (TASKS + "complete", {**PICTURE, "words": LONG}),
    (TASKS + "write", {**PICTURE, "words": LONG}),
    (TASKS + "caption", {**PICTURE, "shots": [{**PICTURE, "answer": LONG}]}),
    (TASKS + "ask", {**PICTURE, "words": "Hi", "shots": [{**PICTURE, "question": LONG, "answer": "a"}]}),
    (TASKS + "classify", {**PICTURE, "labels": ["a", "b"], "shots": [{**PICTURE, "answer": LONG}]}),
]


@pytest.mark.parametrize(("path", "body"), TEXTS)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(client, never_tokenized, path, body):
    answer = client.post(path, body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert (
        "characters, which are more than the 1,024 tokens that this model reads (at most 25,600"
        in error["message"]
    )
    assert error["message"].endswith("send less text")


def test_in_a_form_too(client, never_tokenized):
    form = {"data": {"words": LONG}, "files": {"image": b"anything"}}
    answer = client("POST", TASKS + "ask", **form)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


OTHERS = {
    "stop": LONG,
    "banned": [LONG],
    "regex": LONG,
    "choices": [LONG, "a"],
    "user": LONG,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"description": LONG}}},
    "logit_bias": {LONG: 1},
}


@pytest.mark.parametrize("field", OTHERS)
def test_every_other_text_has_a_limit_of_its_own(client, never_tokenized, field):
    answer = client.post(CHAT, chat(**{field: OTHERS[field]}))
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert len(answer.text) < 1000


def test_so_have_labels(client, never_tokenized):
    answer = client.post(TASKS + "classify", {**PICTURE, "labels": ["a", "b" * 1025]})
    assert "labels[1]: string should have at most 1024 characters" in answer.json()["error"]["message"]


VALUES = [
    chat(foo=[1] * MOST_VALUES),
    chat(**{f"f{number}": 1 for number in range(MOST_VALUES)}),
    chat([1] * MOST_VALUES),
    chat(metadata={str(number): "a" for number in range(MOST_VALUES)}),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": [[]] * MOST_VALUES}}}),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, TASKS + "caption"])
@pytest.mark.parametrize("body", VALUES, ids=range(len(VALUES)))
def test_many_values_are_refused_before_they_are_parsed(client, monkeypatch, path, body):
    data = json.dumps(body).encode()
    monkeypatch.setattr(bodies.json, "loads", lambda *_: pytest.fail("it was parsed"))
    answer = client("POST", path, content=data, headers={"Content-Type": "application/json"})
    monkeypatch.undo()
    assert answer.status_code == 400
    assert "more than 20,000 values of JSON" in answer.json()["error"]["message"]


def test_of_a_forms_field_too(client):
    form = {"data": {"words": "a", "shots": "[" + "1," * MOST_VALUES + "1]"}, "files": {"image": b"anything"}}
    answer = client("POST", TASKS + "ask", **form)
    assert "more than 20,000 values of JSON" in answer.json()["error"]["message"]


def test_many_unknown_fields_are_one_error(client):
    answer = client.post(CHAT, chat([{"role": "user", "content": "a", **{f"f{n}": 1 for n in range(65)}}]))
    assert answer.json()["error"]["message"].endswith("65 of its fields are not known here: leave them out")


def test_deep_nesting_is_told(client):
    body = b'{"messages":' + b"[" * 19_000
    answer = client("POST", CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


leaves = st.one_of(st.none(), st.integers(0, 9), st.text('",[{}]\\:x\n', max_size=8))
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\,', max_size=3), inner)
)


def count(value):
    """The marks that stand before values: a comma before all but the first of a list or object, and their brackets."""
    if isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        return 1 + max(len(inner) - 1, 0) + sum(map(count, inner))
    return 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=trees)
def test_what_stands_in_a_text_is_no_value(value):
    body, many = json.dumps(value).encode(), count(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MOST_VALUES", max(many, 1))
        check_num_values(body)
        if many > 1:
            patch.setattr(bodies, "MOST_VALUES", many - 1)
            with pytest.raises(Fault):
                check_num_values(body)


def test_a_text_full_of_marks_is_only_text():
    check_num_values(json.dumps(chat([user(said('[{,"\\' * 100_000))])).encode())


def test_long_texts_wait_for_each_other_and_short_ones_for_nobody(vlm, monkeypatch):
    monkeypatch.setattr(visit, "LONG_TEXT", 1000)
    going_on = threading.Event()
    long = chat([user(said("word " * 250))], max_tokens=1)

    async def scene():
        async with served(vlm) as (client, service):
            service.long_texts.submit(going_on.wait, 30)
            asked = [asyncio.create_task(client.post(CHAT, json=long)) for _ in range(20)]
            await until(lambda: service.long_texts._work_queue.qsize() == 20)
            assert (await client.post(CHAT, json=chat(max_tokens=1))).status_code == 200
            assert not any(task.done() for task in asked)
            going_on.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 20

    asyncio.run(scene())
