"""Many well-behaved and misbehaving clients at once; shutdown under load."""

import asyncio
import json
import subprocess
import sys
import time

import pytest

from clients.conftest import run_server
from harness import ROOT
from server.request_bodies import chat_request, text_part, user_message
from server_clients import CHAT_COMPLETIONS_PATH, open_async_client, start_server
from soak import DEMO_FOLDER, SoakClients, memory_growth

LONG_REQUEST = chat_request(
    [user_message(text_part("Tell me a story."))], max_tokens=200, temperature=5 / 3, seed=1
)


@pytest.fixture(scope="module")
def running_server(vlm):
    with run_server(vlm, body_megabytes=1) as found:
        yield found


def test_well_behaved_clients_are_answered_among_others(url):
    crowd = SoakClients(url, "demo")

    async def scene():
        async with open_async_client(url) as client:
            await asyncio.gather(*(crowd.send_request(client, kind) for kind in 2 * crowd.request_kinds))

    asyncio.run(scene())
    assert not crowd.failures
    assert set(crowd.num_requests_by_kind.values()) == {2}


def test_the_load_test_notices_a_failing_server(url, running_server, monkeypatch):
    """The load test fails if the server misbehaves."""
    crowd = SoakClients(url, "another model")

    async def scene():
        async with open_async_client(url) as client:
            for kind in (
                crowd.read_stream,
                crowd.read_stream_slowly,
                crowd.wait_for_answer,
                crowd.send_truncated_picture,
                crowd.send_oversized_picture,
            ):
                await crowd.send_request(client, kind)

    asyncio.run(scene())
    assert len(crowd.failures) == 5


def test_growth_is_that_after_the_warm_up():
    warm = list(range(100, 130))
    assert memory_growth([*warm, *[130] * 70]) == 1
    assert memory_growth([*warm, *[130] * 63, *[143] * 7]) == 1.1
    assert memory_growth([*warm, *[130] * 69, 200]) == 1, "one peak is no growth"


def test_sigterm_loses_no_admitted_request():
    with start_server("-m", "idefics", "serve", "--model", str(DEMO_FOLDER), "--name", "demo") as server:
        ends = asyncio.run(run_clients_until_shutdown(server))
        assert server.popen.wait(60) == 0
    assert ends[:12] == 12 * ["data: [DONE]"]
    assert set(ends[12:]) <= {"stop", "length"}


async def run_clients_until_shutdown(server):
    """How the answers of 18 clients end, more than half of which are queued at shutdown."""
    inside = []

    async def stream(client):
        async with client.stream(
            "POST", CHAT_COMPLETIONS_PATH, json={**LONG_REQUEST, "stream": True}
        ) as answer:
            lines = answer.aiter_lines()
            inside.append(await anext(lines))
            return [line async for line in lines if line][-1]

    async def whole(client):
        answer = await client.post(CHAT_COMPLETIONS_PATH, json=LONG_REQUEST)
        return answer.json()["choices"][0]["finish_reason"]

    async with open_async_client(server.url) as client:
        asking = [asyncio.ensure_future(kind(client)) for kind in 12 * [stream] + 6 * [whole]]
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            told = (await client.get("/metrics")).text
            visits = float(told.split("\nidefics_visits ")[1].split()[0])
            if len(inside) == 12 and visits + sum(one.done() for one in asking) >= 18:
                break
        assert not all(one.done() for one in asking), "all are answered already: nothing is tried here"
        server.popen.terminate()
        return await asyncio.gather(*asking)


@pytest.mark.slow
def test_a_short_soak():
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "soak.py", "--minutes", "0.33", "--clients", "8"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {row["who"] for row in found["figures"]} >= {
        "read stream",
        "send oversized body",
        "abandon stream",
    }
    assert all(row["reached"] for row in found["targets"])
