"""Progress before the first token: events that a stream has only if they are asked for."""

import asyncio

import pytest

from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import open_client
from server.request_bodies import (
    chat_request,
    image_part,
    parse_events,
    picture_data_uri,
    text_part,
    user_message,
)
from server.test_server_openapi import check_events_against_schema

CHAT, COMPLETIONS, TASKS = "/v1/chat/completions", "/v1/completions", "/v1/images/tasks"
STREAM = {"stream": True, "stream_options": {"include_progress": True}}
BROKEN = "data:image/png;base64,iVBORw0KGgo="
TWO_PICTURES = [user_message(image_part("shapes"), image_part("puppy"), text_part("What is shown?"))]


@pytest.fixture(autouse=True)
def nothing_cached(vlm):
    vlm.engine.clear_caches()


def progress_of(events):
    return [tuple(event["progress"].values()) for event in events if "progress" in event]


def split(answer):
    """The progress of a stream, and its other events."""
    assert answer.status_code == 200, answer.text
    events = parse_events(answer.text)
    first = next(index for index, event in enumerate(events) if "progress" not in event)
    assert not any("progress" in event for event in events[first:])
    return progress_of(events), events[first:]


def test_a_chat_reports_pictures_queue_tiles_and_prompt(client):
    request = chat_request(TWO_PICTURES, max_tokens=4)
    progress, events = split(client.post(CHAT, request | STREAM))
    num_tokens = client.post(CHAT, request).json()["usage"]["prompt_tokens"]
    assert progress == [
        ("pictures", 0, 2),
        ("pictures", 1, 2),
        ("pictures", 2, 2),
        ("queued", 0, 0),
        ("tiles", 0, 2),
        ("prompt", num_tokens, num_tokens),
    ]
    plain = parse_events(client.post(CHAT, request | {"stream": True}).text)
    assert [one["choices"] for one in events[:-1]] == [one["choices"] for one in plain[:-1]]


def test_each_progress_chunk_of_a_chat_has_no_choices_and_the_fields_of_all_chunks(client):
    events = parse_events(client.post(CHAT, chat_request(max_tokens=1, n=2) | STREAM).text)
    assert len({event["id"] for event in events[:-1]}) == 1
    assert all(event["choices"] == [] for event in events if "progress" in event)


def test_nothing_is_reported_unless_asked_for(client):
    for options in ({}, {"stream_options": {"include_progress": False}}):
        answer = client.post(CHAT, chat_request(max_tokens=1, stream=True) | options)
        assert "progress" not in answer.text


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_completions_report_their_prompt(client, max_tokens):
    request = {"model": "demo", "prompt": "A cat sat on", "max_tokens": max_tokens, "echo": True}
    progress, events = split(client.post(COMPLETIONS, request | STREAM))
    answer = client.post(COMPLETIONS, request).json()
    num_tokens = answer["usage"]["prompt_tokens"]
    expected = [("queued", 0, 0), ("prompt", 0, num_tokens), ("prompt", num_tokens, num_tokens)]
    assert progress == (expected if max_tokens else [])
    text = "".join(choice["text"] for event in events[:-1] for choice in event["choices"])
    assert text == answer["choices"][0]["text"]


@pytest.mark.parametrize("name", ["caption", "ask"])
def test_tasks_report_theirs_with_an_empty_text(client, name):
    request = {"image_url": picture_data_uri("puppy")} | ({"words": "What?"} if name == "ask" else {})
    progress, events = split(client.post(f"{TASKS}/{name}", request | STREAM))
    assert progress[:3] == [("pictures", 0, 1), ("pictures", 1, 1), ("queued", 0, 0)]
    assert progress[3][:2] == ("tiles", 0)
    assert progress[-1][0] == "prompt"
    assert progress[-1][1] == progress[-1][2]
    whole = client.post(f"{TASKS}/{name}", request).json()
    assert "".join(event["text"] for event in events[:-1]) == whole["text"]


def test_a_form_has_the_option_as_json(client):
    form = {
        "stream": "true",
        "stream_options": '{"include_progress": true}',
        "image_url": picture_data_uri("puppy"),
    }
    answer = client("POST", f"{TASKS}/caption", files={name: (None, text) for name, text in form.items()})
    progress, _ = split(answer)
    assert progress[0] == ("pictures", 0, 1)


@pytest.mark.parametrize("answer", [None, "A puppy."])
def test_an_explanation_reports_its_own_answer_and_its_passes(client, answer):
    request = {"image_url": picture_data_uri("puppy"), "words": "What?", "answer": answer, "grid": 4}
    events = parse_events(client.post(f"{TASKS}/explain", request | STREAM).text)
    progress = progress_of(events)
    stages = list(dict.fromkeys(stage for stage, *_ in progress))
    assert stages == (
        ["pictures", "queued", "tiles", "prompt", "passes"] if answer is None else ["pictures", "passes"]
    )
    passes = [one for one in progress if one[0] == "passes"]
    num_passes = passes[-1][2]
    assert passes == [("passes", done, num_passes) for done in range(1, num_passes + 1)]
    whole = [event for event in events[:-1] if "progress" not in event]
    assert whole[-1]["num_passes"] == num_passes
    assert {event["object"] for event in events[:-1]} == {"image.explanation", "image.explanation.progress"}


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        (CHAT, chat_request([user_message({"type": "image_url", "image_url": {"url": BROKEN}})])),
        (f"{TASKS}/caption", {"image_url": BROKEN}),
        (f"{TASKS}/explain", {"image_url": BROKEN, "words": "What?"}),
    ],
)
def test_a_broken_picture_is_the_last_event(app, client, path, request_body):
    refused = client.post(path, request_body | {"stream": True})
    assert refused.status_code == 400, "without progress it is a status"
    progress, events = split(client.post(path, request_body | STREAM))
    assert progress == [("pictures", 0, 1)]
    (event,) = events
    assert event["error"]["code"] == "invalid_image"
    assert event["error"]["message"] == refused.json()["error"]["message"]
    assert not app.state.service.admission.slots


@pytest.mark.parametrize(
    ("path", "request_body", "message"),
    [
        (CHAT, chat_request(), "include_progress is for streams"),
        (f"{TASKS}/caption", {"image_url": picture_data_uri("puppy")}, "include_progress is for streams"),
        (COMPLETIONS, {"model": "demo", "prompt": ["a", "b"], "stream": True}, "one prompt"),
        ("/v1/responses", {"model": "demo", "input": "a", "stream": True}, "/v1/chat/completions"),
    ],
)
def test_it_is_refused_where_there_is_none(client, path, request_body, message):
    refused = client.post(path, request_body | {"stream_options": {"include_progress": True}})
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "stream_options"


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        (CHAT, chat_request(max_tokens=2)),
        (COMPLETIONS, {"model": "demo", "prompt": "A", "max_tokens": 2}),
        (f"{TASKS}/caption", {"image_url": picture_data_uri("puppy")}),
        (f"{TASKS}/explain", {"image_url": picture_data_uri("puppy"), "words": "What?", "grid": 4}),
    ],
)
def test_the_events_match_their_description(client, path, request_body):
    document = client.get("/openapi.json").json()
    answer = client.post(path, request_body | STREAM)
    assert progress_of(parse_events(answer.text))
    check_events_against_schema(document, path, answer)


def test_a_client_that_leaves_while_it_waits_ends_its_request(vlm):
    app = create_app(vlm, Settings(model="demo"))

    async def leave():
        with vlm.engine.condition:  # no step begins
            async with open_client(app) as client:
                task = asyncio.ensure_future(client.post(CHAT, json=chat_request() | STREAM))
                while not app.state.service.admission.slots:
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        for _ in range(500):
            if not vlm.engine.is_busy and not app.state.service.admission.slots:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it goes on")

    asyncio.run(leave())


@pytest.mark.parametrize("path", [CHAT, f"{TASKS}/explain"])
def test_a_request_that_fails_before_its_first_token_ends_with_the_error(client, vlm, monkeypatch, path):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(vlm.engine.model_runner, "run", fail)
    body = chat_request() if path == CHAT else {"image_url": picture_data_uri("puppy"), "words": "What?"}
    answer = client.post(path, body | STREAM)
    assert parse_events(answer.text)[-1]["error"]["type"] == "server_error"
    assert "secret" not in answer.text
