"""Structured output on every route."""

import json
import re

import jsonschema_rs
import pytest

from idefics.processing import shortest_completion
from server.request_bodies import QUESTION_MESSAGES, chat_request, parse_events, picture_data_uri

PATH = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "sides": {"type": "integer"}},
    "required": ["shape", "sides"],
    "additionalProperties": False,
}


def response_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "Seen", "schema": schema, "strict": True}}


def answer_text(body):
    return body["choices"][0]["message"]["content"]


def test_the_answer_matches_the_schema(client, vlm):
    asked = chat_request(response_format=response_format(SCHEMA))
    text = answer_text(client.post(PATH, asked).json())
    found = json.loads(text)
    assert set(found) == {"shape", "sides"}
    assert found["shape"] in ("circle", "square")
    assert text == vlm.chat(QUESTION_MESSAGES, schema=SCHEMA).text
    chunks = parse_events(client.post(PATH, {**asked, "stream": True}).text)[:-1]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_the_answer_parses_with_any_token_limit(client):
    for limit in (12, 20, 40):
        asked = chat_request(
            response_format=response_format(SCHEMA), max_tokens=limit, temperature=1.9, seed=limit
        )
        answer = client.post(PATH, asked)
        if answer.status_code == 400:  # no such object is so short
            continue
        body = answer.json()
        assert json.loads(answer_text(body))["shape"] in ("circle", "square")
        assert body["usage"]["completion_tokens"] <= limit


def test_formats_json_object_and_text(client):
    body = client.post(PATH, chat_request(response_format={"type": "json_object"}, max_tokens=60)).json()
    assert isinstance(json.loads(answer_text(body)), dict)
    plain = client.post(PATH, chat_request(response_format={"type": "text"})).json()
    assert answer_text(plain) == answer_text(client.post(PATH, chat_request()).json())


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object", "value": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json", "value": SCHEMA},
    ],
)
def test_schemas_in_formats_of_other_servers(client, form):
    text = answer_text(client.post(PATH, chat_request(response_format=form)).json())
    assert text == answer_text(
        client.post(PATH, chat_request(response_format=response_format(SCHEMA))).json()
    )
    asked = {"model": "demo", "input": "Hi", "text": {"format": form}}
    body = client.post("/v1/responses", asked).json()
    assert set(json.loads(body["output"][0]["content"][0]["text"])) == {"shape", "sides"}
    assert body["text"] == {"format": form}


def test_regular_expressions_in_the_format_of_tgi(client):
    form = {"type": "regex", "value": "[a-c]{5}"}
    assert answer_text(client.post(PATH, chat_request(response_format=form)).json()) == answer_text(
        client.post(PATH, chat_request(regex="[a-c]{5}")).json()
    )


@pytest.mark.parametrize(
    "form",
    [response_format({}), {"type": "json_object", "value": {}}, {"type": "json", "value": {}}],
    ids=str,
)
def test_a_schema_that_allows_everything(client, form):
    """An empty schema allows any JSON, but not any text."""
    body = client.post(PATH, chat_request(response_format=form, max_tokens=40)).json()
    json.loads(answer_text(body))


def test_regex_choices_and_banned(client):
    assert re.fullmatch(r"[a-c]{5}", answer_text(client.post(PATH, chat_request(regex="[a-c]{5}")).json()))
    assert answer_text(client.post(PATH, chat_request(choices=["seven", "eleven"])).json()) in (
        "seven",
        "eleven",
    )
    free = answer_text(client.post(PATH, chat_request()).json())
    word = max(re.findall(r"\w+", free), key=len)
    assert word in free
    assert word not in answer_text(client.post(PATH, chat_request(banned=[word])).json())


def test_constraints_on_other_routes(client):
    content = [
        {"type": "input_text", "text": "What is shown?"},
        {"type": "input_image", "image_url": picture_data_uri("shapes")},
    ]
    form = {"format": {"type": "json_schema", "name": "Seen", "schema": SCHEMA, "strict": True}}
    asked = {"model": "demo", "input": [{"role": "user", "content": content}], "text": form}
    body = client.post("/v1/responses", asked).json()
    assert json.loads(body["output"][0]["content"][0]["text"])["shape"] in ("circle", "square")
    assert body["text"] == form
    asked = {"model": "demo", "prompt": "A", "regex": "[0-9]{3}"}
    assert re.fullmatch("[0-9]{3}", client.post("/v1/completions", asked).json()["choices"][0]["text"])
    asked = {"image_url": picture_data_uri("shapes"), "choices": ["seven", "eleven"]}
    assert client.post("/v1/images/tasks/caption", asked).json()["text"] in ("seven", "eleven")


def nested_schema(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def exponential_schema(levels, **last):
    """A short schema that expands to 10 ** levels parts."""
    defs = {
        f"d{i}": {
            "type": "object",
            "properties": {f"p{j}": {"$ref": f"#/$defs/d{i + 1}"} for j in range(10)},
            "required": [f"p{j}" for j in range(10)],
            "additionalProperties": False,
        }
        for i in range(levels)
    }
    return {"$defs": {**defs, f"d{levels}": last or {"type": "string"}}, "$ref": "#/$defs/d0"}


ENDLESS_SCHEMA = {
    "type": "object",
    "properties": {"a": {"$ref": "#"}},
    "required": ["a"],
    "additionalProperties": False,
}
MANY_CHOICES = [f"value number {number}" for number in range(3000)]
HOSTILE_CONSTRAINTS = {
    "counted in counted": ({"regex": "(((a{100}){100}){100}){100}"}, "no text of the given regex"),
    "a state for each choice": ({"regex": ".*a.{300}b"}, "no text of the given regex"),
    "brackets in brackets": ({"regex": "(" * 1500 + "a" + ")" * 1500}, "regex cannot be used"),
    "large classes": ({"regex": r"\p{L}{1,900}" * 300}, "no text of the given regex"),
    "refers to itself": ({"schema": {"$ref": "#"}}, "no text of the given schema"),
    "needs itself": ({"schema": ENDLESS_SCHEMA}, "no text of the given schema"),
    "grows tenfold": ({"schema": exponential_schema(8)}, "no text of the given schema"),
    "grows tenfold, and again": ({"schema": exponential_schema(25)}, "no text of the given schema"),
    "long": ({"schema": {"type": "string", "minLength": 10**9}}, "no text of the given schema"),
    "wide": ({"schema": {"type": "array", "minItems": 10**9, "items": {}}}, "no text of the given schema"),
    "values": ({"schema": {"enum": MANY_CHOICES}}, "characters; the limit is 16,384"),
    "a constant": ({"schema": {"const": "x" * 20_000}}, "characters; the limit is 16,384"),
    "properties": (
        {"schema": {"properties": {name: {} for name in MANY_CHOICES}}},
        "characters; the limit is 16,384",
    ),
    "multiples": ({"schema": {"type": "integer", "multipleOf": 99_991}}, "four digits"),
    "small multiples": ({"schema": {"type": "number", "multipleOf": 0.99991}}, "four digits"),
    "huge multiples": ({"schema": {"items": [{"multipleOf": 10**400}]}}, "four digits"),
    "choices": ({"choices": [f"{number}{'é' * 200}" for number in range(50)]}, "the limit is 16,384"),
}


@pytest.mark.parametrize("name", HOSTILE_CONSTRAINTS)
def test_hostile_constraints_are_refused(client, name):
    form, words = HOSTILE_CONSTRAINTS[name]
    asked = {"response_format": response_format(form["schema"])} if "schema" in form else form
    answer = client.post(PATH, chat_request(**asked))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_constraint_that_becomes_too_complex_fails_alone(client, monkeypatch):
    """If the limit is reached during an answer, that request fails, and no other does."""
    monkeypatch.setattr(shortest_completion, "MAX_LEXER_STATES", 300)
    found = []
    for seed in range(8):
        asked = chat_request(regex="[ab]*a[ab]{40}c", temperature=2.0, seed=seed, max_tokens=150)
        answer = client.post(PATH, asked)
        streamed = parse_events(client.post(PATH, asked | {"stream": True}).text)
        if answer.status_code == 200:
            assert re.fullmatch("[ab]*a[ab]{40}c", answer_text(answer.json()))
            assert streamed[-1] == "[DONE]"
        else:
            whole, last = answer.json()["error"], streamed[-1]["error"]
            assert "the given regex is too complex" in whole["message"]
            assert last == whole | {"request_id": last["request_id"]}
        found.append(answer.status_code)
    assert 400 in found
    monkeypatch.undo()
    another = asked | {"regex": "[ab]*a[ab]{40}d"}  # the first one is kept as it was made ready
    assert client.post(PATH, another).status_code == 200


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "multipleOf": 0.01},
        {"type": "integer", "multipleOf": 9_999, "minimum": 0},
        {"enum": [f"value {number}" for number in range(1_000)]},
        {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(50)}},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_large_constraints_are_enforced(client, schema):
    answer = client.post(PATH, chat_request(response_format=response_format(schema), max_tokens=100))
    assert answer.status_code == 200, answer.text
    jsonschema_rs.validator_for(schema).validate(json.loads(answer_text(answer.json())))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"regex": "["}, "regex"),
        ({"regex": "a", "choices": ["b"]}, "one constraint"),
        ({"choices": []}, "choices"),
        ({"choices": ["a"] * 1001}, "choices"),
        ({"banned": ["a"] * 129}, "banned"),
        ({"response_format": response_format({"type": "nothing"})}, "schema"),
        ({"response_format": response_format({"$ref": "https://example.com/a.json"})}, "schema"),
        ({"response_format": response_format(nested_schema(40))}, "nested"),
        ({"response_format": {"type": "yaml"}}, "json_object"),
        ({"response_format": {"type": "json_object", "value": nested_schema(40)}}, "nested"),
        ({"response_format": {"type": "json_object", "value": {}, "schema": {}}}, "give one JSON schema"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "regex", "value": "a"}, "regex": "b"}, "regex is given twice"),
        ({"response_format": {"type": "regex", "value": "a"}, "choices": ["b"]}, "one constraint"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_fields_are_named(client, wrong, words):
    answer = client.post(PATH, chat_request(**wrong))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
