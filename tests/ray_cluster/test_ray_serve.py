"""The app on Ray Serve: two replicas answer, stream, refuse and drain as one server does."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from test_ray_pool import PICTURES

from idefics.server.ray_serve import serve_on_ray
from idefics.server.settings import Settings

LOAD_KEYWORDS = {"model": "demo", "feature_cache": False, "remote_images": "off"}
REQUESTS_AT_ONCE = 2


def make_settings(three_nodes, **changes):
    return Settings(
        **{"model": "demo", "ray": three_nodes.address, "port": 0, "replicas": 2, "drain": 20.0, **changes}
    )


@pytest.fixture(scope="module")
def server(three_nodes):
    settings = make_settings(three_nodes, requests_at_once=REQUESTS_AT_ONCE)
    with serve_on_ray(settings, LOAD_KEYWORDS) as url:
        yield url


def question(picture=0, text="What is this?", **fields):
    """The body of a chat request about a picture."""
    address = "data:image/png;base64," + base64.b64encode(PICTURES[picture]).decode()
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": text}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


def slow_question(num_letters=500):
    """A request whose answer takes seconds."""
    return question(regex=f"[a-z]{{{num_letters}}}", max_tokens=num_letters)


def ask(server, body, **headers):
    return httpx.post(f"{server}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_it_answers_as_the_model_does(server, demo_model):
    answer = ask(server, question(), **{"x-request-id": "abc"})
    expected = demo_model.ask(PICTURES[0], "What is this?", max_new_tokens=8)
    assert answer.json()["choices"][0]["message"]["content"] == str(expected)
    assert answer.headers.get_list("x-request-id") == ["abc"]


def test_an_error_is_in_the_format_of_openai(server):
    answer = ask(server, {**question(), "model": "other"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_an_answer_is_streamed_as_it_is_written(server):
    times, pieces = [], []
    body = {**slow_question(), "stream": True}
    with httpx.stream("POST", f"{server}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
                pieces.append(json.loads(line[6:])["choices"][0]["delta"].get("content") or "")
            elif line:
                last = line
    assert last == "data: [DONE]"
    assert len("".join(pieces)) == 500
    assert len(pieces) > 20
    assert times[len(times) // 2] - times[0] > 0.1


def test_too_many_requests_are_refused_with_429(server):
    with ThreadPoolExecutor(2 * REQUESTS_AT_ONCE + 4) as executor:
        answers = list(executor.map(lambda _: ask(server, slow_question()), range(2 * REQUESTS_AT_ONCE + 4)))
    refused = [one for one in answers if one.status_code != 200]
    assert [one.status_code for one in answers].count(200) >= 2 * REQUESTS_AT_ONCE
    assert refused
    for one in refused:
        assert one.status_code == 429
        assert one.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(one.headers["retry-after"]) >= 1


def test_a_client_that_leaves_frees_its_place(server):
    for _ in range(6 * REQUESTS_AT_ONCE):  # more than there are places
        with (
            httpx.stream(
                "POST",
                f"{server}/v1/chat/completions",
                json={**slow_question(1000), "stream": True},
                timeout=60,
            ) as response,
        ):
            assert response.status_code == 200
            next(response.iter_lines())
    assert ask(server, question()).status_code == 200


def test_a_session_stays_with_its_replica(server):
    sessions = [{"x-session-id": f"session {number}"} for number in range(16)]
    replicas = [{replica_of(server, session) for _ in range(3)} for session in sessions]
    assert all(len(one) == 1 for one in replicas)
    assert len(set.union(*replicas)) == 2


def replica_of(server, headers):
    """Tells replicas apart by the time at which they made a counter."""
    lines = httpx.get(f"{server}/metrics", headers=headers).text.splitlines()
    return next(line for line in lines if line.startswith("idefics_time_per_token_seconds_created"))
