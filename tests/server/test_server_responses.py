"""`/v1/responses` answers as chat completions do, in its own format."""

import pytest

from server.request_bodies import (
    chat_request,
    image_part,
    parse_events,
    picture_data_uri,
    text_part,
    user_message,
)

PATH = "/v1/responses"


def input_image_part(name, **more):
    return {"type": "input_image", "image_url": picture_data_uri(name), **more}


def input_text_part(text):
    return {"type": "input_text", "text": text}


def responses_request(**more):
    content = [input_image_part("shapes"), input_text_part("What is shown?")]
    return {"model": "demo", "input": [{"role": "user", "content": content}], **more}


def direct_answer(client, messages=None, **more):
    messages = messages or [user_message(image_part("shapes"), text_part("What is shown?"))]
    return client.post("/v1/chat/completions", chat_request(messages, **more)).json()


def answer_text(body):
    ((part,),) = [item["content"] for item in body["output"]]
    return part["text"]


def test_the_answer_is_that_of_a_chat(client):
    body, expected = client.post(PATH, responses_request()).json(), direct_answer(client)
    assert body["object"] == "response"
    assert body["status"] == "completed"
    assert answer_text(body) == expected["choices"][0]["message"]["content"]
    usage, details = expected["usage"], body["usage"]["input_tokens_details"]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [body["usage"][name] for name in ("input_tokens", "output_tokens", "total_tokens")] == [
        usage[name] for name in names
    ]
    assert sum(details.values()) == usage["prompt_tokens"], "what is not found is read and kept"


def test_the_usage_counts_cached_tokens(client, vlm):
    vlm.engine.clear_caches()
    first, again = (client.post(PATH, responses_request()).json()["usage"] for _ in range(2))
    found = [usage["input_tokens_details"]["cached_tokens"] for usage in (first, again)]
    assert found == [0, first["input_tokens"] - 1]
    streamed = parse_events(client.post(PATH, responses_request(stream=True)).text)
    assert streamed[-1]["response"]["usage"] == again


def test_text_input_and_instructions(client):
    body = client.post(PATH, {"model": "demo", "input": "Hi", "instructions": "Be short."}).json()
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert answer_text(body) == direct_answer(client, turns)["choices"][0]["message"]["content"]
    assert body["instructions"] == "Be short."


def test_a_conversation_with_answers_sent_back(client):
    first = client.post(PATH, responses_request()).json()
    more = {
        "role": "user",
        "content": [input_text_part("And the colour?"), input_image_part("door", detail="low")],
    }
    body = client.post(
        PATH, {"model": "demo", "input": [*responses_request()["input"], *first["output"], more]}
    ).json()
    turns = [
        user_message(image_part("shapes"), text_part("What is shown?")),
        {"role": "assistant", "content": answer_text(first)},
        user_message(text_part("And the colour?"), image_part("door", detail="low")),
    ]
    assert answer_text(body) == direct_answer(client, turns)["choices"][0]["message"]["content"]


def test_a_truncated_answer_is_incomplete(client):
    body = client.post(PATH, responses_request(max_output_tokens=2)).json()
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    last = parse_events(client.post(PATH, responses_request(max_output_tokens=2, stream=True)).text)[-1]
    assert last["type"] == "response.incomplete"


def test_a_stream_has_the_same_answer(client):
    how = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    whole = client.post(PATH, responses_request(**how)).json()
    answer = client.post(PATH, responses_request(stream=True, **how))
    told = parse_events(answer.text)
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [one["type"] for one in told]
    assert names[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    deltas = [one for one in told if one["type"] == "response.output_text.delta"]
    assert "".join(one["delta"] for one in deltas) == answer_text(whole)
    assert [row for one in deltas for row in one["logprobs"]] == whole["output"][0]["content"][0]["logprobs"]
    assert names[-1] == "response.completed"
    last = told[-1]["response"]
    own = {"id", "created_at", "output"}
    assert {name: value for name, value in last.items() if name not in own} == {
        name: value for name, value in whole.items() if name not in own
    }
    assert last["output"][0]["content"] == whole["output"][0]["content"]


def test_an_error_during_a_stream_is_its_last_event(client, vlm, monkeypatch):
    run, left = vlm.engine.model_runner.run, iter(range(3))

    def fails(plan):
        if next(left, None) is None:
            raise RuntimeError
        return run(plan)

    monkeypatch.setattr(vlm.engine.model_runner, "run", fails)
    last = parse_events(client.post(PATH, responses_request(stream=True)).text)[-1]
    assert last["type"] == "error"
    assert last["message"].startswith("internal server error")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"previous_response_id": "resp_1"}, "the server stores nothing"),
        ({"store": True}, "store"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, '"input_text"'),
        ({"input": [{"role": "user", "content": [input_image_part("door")] * 17}]}, "the limit is 16"),
        (
            {"input": [{"role": "user", "content": [{**input_image_part("door"), "image_url": "/a.png"}]}]},
            "neither",
        ),
        ({"text": {"format": {"type": "xml"}}}, "json_schema"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_fields_are_named(client, wrong, told):
    answer = client.post(PATH, {**responses_request(), **wrong})
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]["message"]
