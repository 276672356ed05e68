"""Clients that behave badly, all at once; and an end while many are being answered."""

import asyncio
import json
import subprocess
import sys
import time

import pytest

from callers import PATH, opened, process
from clients.conftest import serving
from harness import ROOT
from server.asking import chat, said, user
from soak import DEMO, Crowd, growth

LONG = chat([user(said("Tell me a story."))], max_tokens=200, temperature=5 / 3, seed=1)


@pytest.fixture(scope="module")
def served(vlm):
    with serving(vlm, body_megabytes=1) as found:
        yield found


def test_whoever_behaves_well_is_answered_among_those_who_do_not(url):
    crowd = Crowd(url, "demo")

    async def scene():
        async with opened(url) as client:
            await asyncio.gather(*(crowd.once(client, kind) for kind in 2 * crowd.kinds))

    asyncio.run(scene())
    assert not crowd.wrong
    assert set(crowd.outcomes.values()) == {2}


def test_a_server_that_fails_is_noticed(url, served, monkeypatch):
    """What the crowd expects is expected of each of them."""
    crowd = Crowd(url, "another model")

    async def scene():
        async with opened(url) as client:
            for kind in (crowd.reads, crowd.reads_slowly, crowd.waits, crowd.breaks, crowd.is_vast):
                await crowd.once(client, kind)

    asyncio.run(scene())
    assert len(crowd.wrong) == 5


def test_growth_is_that_after_the_warm_up():
    warm = list(range(100, 130))
    assert growth([*warm, *[130] * 70]) == 1
    assert growth([*warm, *[130] * 63, *[143] * 7]) == 1.1
    assert growth([*warm, *[130] * 69, 200]) == 1, "one peak is no growth"


def test_sigterm_loses_nobody_who_has_been_let_in():
    with process("-m", "idefics", "serve", "--model", str(DEMO), "--name", "demo") as server:
        ends = asyncio.run(ended(server))
        assert server.running.wait(60) == 0
    assert ends[:12] == 12 * ["data: [DONE]"]
    assert set(ends[12:]) <= {"stop", "length"}


async def ended(server):
    """How the answers of 18 clients end, of which more than half wait when the server is told to."""
    inside = []

    async def stream(client):
        async with client.stream("POST", PATH, json={**LONG, "stream": True}) as answer:
            lines = answer.aiter_lines()
            inside.append(await anext(lines))
            return [line async for line in lines if line][-1]

    async def whole(client):
        answer = await client.post(PATH, json=LONG)
        return answer.json()["choices"][0]["finish_reason"]

    async with opened(server.url) as client:
        asking = [asyncio.ensure_future(kind(client)) for kind in 12 * [stream] + 6 * [whole]]
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            told = (await client.get("/metrics")).text
            visits = float(told.split("\nidefics_visits ")[1].split()[0])
            if len(inside) == 12 and visits + sum(one.done() for one in asking) >= 18:
                break
        assert not all(one.done() for one in asking), "all are answered already: nothing is tried here"
        server.running.terminate()
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
    assert {row["who"] for row in found["figures"]} >= {"reads", "floods", "leaves a stream"}
    assert all(row["reached"] for row in found["targets"])
