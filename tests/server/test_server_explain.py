"""`/v1/images/tasks/explain`: as `vlm.explain`, streamed, admitted by its cost, and ended with its client."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import idefics
from idefics.messages import Message, Picture
from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import SyncClient, open_client
from server.request_bodies import parse_events, picture_data_uri

PATH = "/v1/images/tasks/explain"
QUESTION = "What is in this image?"


def explain_request(**fields):
    return {"image_url": picture_data_uri("puppy"), "words": QUESTION, "grid": 8, **fields}


def assert_equals(body, explanation):
    expected = explanation.to_dict()
    assert [word["text"] for word in body["words"]] == [word["text"] for word in expected["words"]]
    for word, other in zip(body["words"], expected["words"], strict=True):
        assert np.allclose(word["heat"], other["heat"], atol=5e-3)
        assert word["log_probability"] == pytest.approx(other["log_probability"], abs=5e-3)
    for field in ("answer", "method", "unit", "is_ranking", "num_passes", "max_passes", "pictures"):
        assert body[field] == expected[field]


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {"question": QUESTION}),
        ({"answer": "A car."}, {"question": QUESTION, "answer": "A car."}),
        ({"words": None, "labels": ["puppy", "car"]}, {"labels": ["puppy", "car"]}),
        ({"words": None, "task": "caption", "max_new_tokens": 4}, {"task": "caption", "max_new_tokens": 4}),
        ({"method": "fast"}, {"question": QUESTION, "method": "fast"}),
        (
            {"answer": "A car.", "earlier": [{"question": "Is it large?", "answer": "No."}]},
            {"question": QUESTION, "answer": "A car.", "earlier": [("Is it large?", "No.")]},
        ),
        (
            {"words": None, "labels": ["puppy", "car"], "method": "fast"},
            {"labels": ["puppy", "car"], "method": "fast"},
        ),
    ],
)
def test_it_answers_as_the_method(client, vlm, fields, arguments):
    answer = client.post(PATH, explain_request(**fields))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "image.explanation"
    assert_equals(body, vlm.explain(Picture(picture_data_uri("puppy")), grid=8, **arguments))


def test_earlier_turns_need_an_answer(client):
    refused = client.post(PATH, explain_request(earlier=[{"question": "Is it large?", "answer": "No."}]))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "answer")


def test_a_stream_gets_finer_and_ends_with_the_result(client, vlm):
    answer = client.post(PATH, explain_request(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end = parse_events(answer.text)
    passes = [event["num_passes"] for event in events]
    assert passes == sorted(set(passes))
    assert len(passes) > 2
    assert passes[-1] == events[0]["max_passes"]
    assert end == "[DONE]"
    assert_equals(events[-1], vlm.explain(Picture(picture_data_uri("puppy")), QUESTION, grid=8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": None}, "no question given"),
        ({"labels": ["a", "b"]}, "without a question"),
        ({"grid": 100}, "grid"),
        ({"task": "sing"}, "sing"),
        ({"method": "slow"}, "method"),
        ({"image_url": "data:,x"}, "picture"),
    ],
)
def test_wrong_requests_are_refused(client, fields, message):
    answer = client.post(PATH, explain_request(**fields))
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["occlusion", "fast"])
def test_the_usage_counts_the_tokens_of_all_passes(client, vlm, method):
    vlm.engine.clear_caches()
    picture, answer = picture_data_uri("puppy"), "A puppy."
    body = client.post(PATH, explain_request(answer=answer, method=method)).json()
    prompt = vlm.prompt([Message("user", (Picture(picture), QUESTION))])
    num_new = sum(len(word["tokens"]) for word in body["words"])
    usage, passes = body["usage"], body["num_passes"]
    assert passes == (3 if method == "fast" else body["max_passes"])
    assert usage["prompt_tokens"] == passes * len(prompt)
    assert usage["completion_tokens"] == passes * num_new
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["pictures"] == 1
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_the_model_s_own_answer_is_in_the_usage(client):
    given, own = (client.post(PATH, explain_request(answer=one, grid=4)).json() for one in ("A puppy.", None))
    task = client.post("/v1/images/tasks/ask", {"image_url": picture_data_uri("puppy"), "words": QUESTION})
    per_pass = given["usage"]["prompt_tokens"] // given["num_passes"]
    assert (
        own["usage"]["prompt_tokens"] == own["num_passes"] * per_pass + task.json()["usage"]["prompt_tokens"]
    )


def test_a_model_without_the_fast_method_says_so(monkeypatch):
    first = idefics.load("demo-idefics1", remote_images="off")
    client = SyncClient(create_app(first, Settings(model="demo-idefics1")))
    refused = client.post(PATH, explain_request(method="fast"))
    assert refused.status_code == 400
    assert "occlusion" in refused.json()["error"]["message"]


def test_the_fast_method_ends_with_its_client(app, vlm, monkeypatch):
    attention, calls = vlm.engine.attention, []
    monkeypatch.setattr(vlm.engine, "attention", lambda *arguments: calls.append(1) or attention(*arguments))
    labels = [f"a thing number {number}" for number in range(200)]

    async def leave():
        async with open_client(app) as client:
            body = explain_request(words=None, labels=labels, method="fast")
            task = asyncio.ensure_future(client.post(PATH, json=body))
            while not calls:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.3)
        num_calls = len(calls)
        await asyncio.sleep(0.3)
        assert len(calls) == num_calls < len(labels)
        assert not app.state.service.admission.slots

    asyncio.run(leave())


def test_it_is_admitted_by_the_tokens_of_all_passes(vlm):
    client = SyncClient(create_app(vlm, Settings(model="demo", tokens_at_once=1000)))
    admission = client.app.state.service.admission
    assert client.post(PATH, explain_request(answer="A puppy.")).status_code == 200, "alone it is let in"
    other = admission.acquire_slot(lambda: None)
    admission.reserve(other, tokens=10)
    refused = client.post(PATH, explain_request(answer="A puppy."))
    assert refused.status_code == 429
    assert "tokens" in refused.json()["error"]["message"]
    one_pass = client.post("/v1/images/tasks/ask", {"image_url": picture_data_uri("puppy"), "words": "What?"})
    assert one_pass.status_code == 200
    admission.release_slot(other)
    assert (admission.usage["pictures"], admission.usage["tokens"], admission.slots) == (0, 0, set())


def test_when_the_client_leaves_nothing_runs_on(app, vlm):
    async def leave():
        async with open_client(app) as client:
            task = asyncio.ensure_future(client.post(PATH, json=explain_request(grid=16)))
            while not vlm.engine.is_busy:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for _ in range(200):
            if not vlm.engine.is_busy and not app.state.service.admission.slots:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it runs on")

    asyncio.run(leave())


def test_an_engine_whose_queue_is_full_delays_it(client, vlm, monkeypatch):
    from idefics.errors import EngineBusy

    submit, refusals = vlm.engine.submit, [3]

    def submit_or_refuse(request, **options):
        if request.continuations is not None and refusals[0]:
            refusals[0] -= 1
            raise EngineBusy("full")
        return submit(request, **options)

    monkeypatch.setattr(vlm.engine, "submit", submit_or_refuse)
    answer = client.post(PATH, explain_request(answer="A puppy."))
    assert answer.status_code == 200
    assert refusals == [0]


def test_an_error_during_a_stream_is_its_last_event(client, vlm, monkeypatch):
    run, left = vlm.engine.model_runner.run, [6]

    def fail_later(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("secret")
        return run(*arguments)

    monkeypatch.setattr(vlm.engine.model_runner, "run", fail_later)
    answer = client.post(PATH, explain_request(stream=True, answer="A puppy."))
    lines = [line for line in answer.text.splitlines() if line]
    assert "error" in json.loads(lines[-1].removeprefix("data: "))
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert client.post(PATH, explain_request(answer="A puppy.")).status_code == 200


def test_notes_say_what_was_not_read(client):
    file = io.BytesIO()
    first, second = (Image.new("RGB", (96, 96), color) for color in ("red", "blue"))
    first.save(file, "GIF", save_all=True, append_images=[second])
    uri = "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
    body = client.post(PATH, explain_request(image_url=uri, answer="A circle.", grid=4)).json()
    (note,) = body["notes"]
    assert "first" in note
    assert "notes" not in client.post(PATH, explain_request(answer="A circle.", grid=4)).json()
