"""Answers of a given form, over every route that has them."""

import json
import re

import pytest

from server.asking import QUESTION, chat, data_uri, events

PATH = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "sides": {"type": "integer"}},
    "required": ["shape", "sides"],
    "additionalProperties": False,
}


def as_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "Seen", "schema": schema, "strict": True}}


def text_of(body):
    return body["choices"][0]["message"]["content"]


def test_a_schema_is_kept_to(client, vlm):
    asked = chat(response_format=as_format(SCHEMA))
    text = text_of(client.post(PATH, asked).json())
    found = json.loads(text)
    assert set(found) == {"shape", "sides"}
    assert found["shape"] in ("circle", "square")
    assert text == vlm.chat(QUESTION, schema=SCHEMA).text
    chunks = events(client.post(PATH, {**asked, "stream": True}).text)[:-1]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_it_parses_however_short_it_must_be(client):
    for limit in (12, 20, 40):
        asked = chat(response_format=as_format(SCHEMA), max_tokens=limit, temperature=1.9, seed=limit)
        answer = client.post(PATH, asked)
        if answer.status_code == 400:  # no such object is so short
            continue
        body = answer.json()
        assert json.loads(text_of(body))["shape"] in ("circle", "square")
        assert body["usage"]["completion_tokens"] <= limit


def test_any_object_and_any_text(client):
    body = client.post(PATH, chat(response_format={"type": "json_object"}, max_tokens=60)).json()
    assert isinstance(json.loads(text_of(body)), dict)
    plain = client.post(PATH, chat(response_format={"type": "text"})).json()
    assert text_of(plain) == text_of(client.post(PATH, chat()).json())


def test_expressions_choices_and_banned_words(client):
    assert re.fullmatch(r"[a-c]{5}", text_of(client.post(PATH, chat(regex="[a-c]{5}")).json()))
    assert text_of(client.post(PATH, chat(choices=["seven", "eleven"])).json()) in ("seven", "eleven")
    free = text_of(client.post(PATH, chat()).json())
    word = max(re.findall(r"\w+", free), key=len)
    assert word in free
    assert word not in text_of(client.post(PATH, chat(banned=[word])).json())


def test_responses_completions_and_tasks_have_them_too(client):
    content = [
        {"type": "input_text", "text": "What is shown?"},
        {"type": "input_image", "image_url": data_uri("shapes")},
    ]
    form = {"format": {"type": "json_schema", "name": "Seen", "schema": SCHEMA, "strict": True}}
    asked = {"model": "demo", "input": [{"role": "user", "content": content}], "text": form}
    body = client.post("/v1/responses", asked).json()
    assert json.loads(body["output"][0]["content"][0]["text"])["shape"] in ("circle", "square")
    assert body["text"] == form
    asked = {"model": "demo", "prompt": "A", "regex": "[0-9]{3}"}
    assert re.fullmatch("[0-9]{3}", client.post("/v1/completions", asked).json()["choices"][0]["text"])
    asked = {"image_url": data_uri("shapes"), "choices": ["seven", "eleven"]}
    assert client.post("/v1/images/tasks/caption", asked).json()["text"] in ("seven", "eleven")


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"regex": "["}, "regex"),
        ({"regex": "a", "choices": ["b"]}, "one form"),
        ({"choices": []}, "choices"),
        ({"choices": ["a"] * 1001}, "choices"),
        ({"banned": ["a"] * 129}, "banned"),
        ({"response_format": as_format({"type": "nothing"})}, "schema"),
        ({"response_format": as_format({"$ref": "https://example.com/a.json"})}, "schema"),
        ({"response_format": as_format(nested(40))}, "nested"),
        ({"response_format": {"type": "yaml"}}, "json_object"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_named(client, wrong, words):
    answer = client.post(PATH, chat(**wrong))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
