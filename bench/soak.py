"""A long time among clients that behave badly: no memory is lost, nobody waits in vain, and in the end nothing is held.

`python bench/soak.py [--minutes 10] [--clients 16]`. A third of the requests is well formed and must be answered, some
of them read slowly; the others leave in mid-stream, leave while they wait, send half of what they announce, a broken
picture, one of too many pixels, or too much. Pictures come from a stock that fills the caches in the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import struct
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

import idefics
from callers import PATH, Failed, Process, ask, body, opened, process
from harness import Report

STOCK = 48  # questions, two pictures at most in each
TOKENS = 24
WARM_UP = 0.3  # of the time
LONG = 5  # minutes; a shorter run is nothing but warm-up
PARTS = 10  # of the rest, whose medians are compared
GROWTH = 1.05
REST = 30.0  # seconds until everything must have been given back
DEMO = Path(idefics.__file__).parent / "demo" / "idefics3"


def vast_picture() -> str:
    """A PNG that says it has 900 million pixels, as data URI."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return "data:image/png;base64," + base64.b64encode(file).decode()


class Crowd:
    """Clients of all kinds.

    Attributes:
        outcomes: how often each kind has asked.
        wrong: what should not have happened.
    """

    def __init__(self, url: str, model: str, seed: int = 0) -> None:
        self.url, self.model = url, model
        self.stock = [body(number, model=model, tokens=TOKENS) for number in range(STOCK)]
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        well: list[Callable[[httpx.AsyncClient], Awaitable[None]]] = [
            self.reads,
            self.waits,
            self.reads_slowly,
        ]
        ill = [
            self.leaves_a_stream,
            self.leaves_the_queue,
            self.says_half,
            self.breaks,
            self.is_vast,
            self.floods,
        ]
        self.kinds = [*well, *ill]

    async def stay(self, until: float, clients: int) -> None:
        """So many of them until `time.monotonic` says so."""

        async def one(client: httpx.AsyncClient) -> None:
            while time.monotonic() < until:
                await self.once(client, self.random.choice(self.kinds))

        async with opened(self.url) as client:
            await asyncio.gather(*(one(client) for _ in range(clients)))

    async def once(
        self, client: httpx.AsyncClient, kind: Callable[[httpx.AsyncClient], Awaitable[None]]
    ) -> None:
        """One request."""
        name = kind.__name__.replace("_", " ")
        self.outcomes[name] += 1
        try:
            async with asyncio.timeout(120):
                await kind(client)
        except (Failed, httpx.HTTPError, OSError) as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")

    def question(self, **more: Any) -> dict[str, Any]:
        """One of the stock, in words of its own, so that no answer is a repetition."""
        asked = self.random.choice(self.stock)
        *shown, words = asked["messages"][0]["content"]
        said = {"type": "text", "text": f"{words['text']} {self.random.getrandbits(32):x}"}
        return {**asked, "messages": [{"role": "user", "content": [*shown, said]}], **more}

    async def reads(self, client: httpx.AsyncClient) -> None:
        """A stream, to its end."""
        await ask(client, self.question())

    async def reads_slowly(self, client: httpx.AsyncClient) -> None:
        """The same, with a rest after each line."""
        await ask(client, self.question(), pause=0.1)

    async def waits(self, client: httpx.AsyncClient) -> None:
        """An answer as a whole."""
        answer = await client.post(PATH, json=self.question(stream=False))
        if answer.status_code != 200 or not answer.json()["choices"][0]["finish_reason"]:
            raise Failed(f"{answer.status_code}: {answer.text[:200]}")

    async def leaves_a_stream(self, client: httpx.AsyncClient) -> None:
        """Reads a little of a long answer."""
        asked = self.question(temperature=2, max_tokens=400)
        async with client.stream("POST", PATH, json=asked) as answer:
            lines = answer.aiter_lines()
            for _ in range(self.random.randint(1, 6)):
                await anext(lines, "")

    async def leaves_the_queue(self, client: httpx.AsyncClient) -> None:
        """Does not wait for an answer."""
        asking = asyncio.ensure_future(client.post(PATH, json=self.question(stream=False)))
        await asyncio.wait([asking], timeout=self.random.uniform(0, 0.3))
        if not asking.cancel():
            asking.result()

    async def says_half(self, client: httpx.AsyncClient) -> None:
        """Announces more than it sends, and hangs up."""
        host, port = client.base_url.host, client.base_url.port
        content = json.dumps(self.question()).encode()
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content[: self.random.randrange(len(content))])
        await writer.drain()
        writer.close()

    async def breaks(self, client: httpx.AsyncClient) -> None:
        """A picture that ends too early."""
        shown = self.random.choice([one for one in self.stock if len(one["messages"][0]["content"]) > 1])
        uri = shown["messages"][0]["content"][0]["image_url"]["url"]
        await self.refused(client, 400, uri[: len(uri) * self.random.randint(20, 80) // 400 * 4])

    async def is_vast(self, client: httpx.AsyncClient) -> None:
        """A small file that would be a large picture."""
        await self.refused(client, 400, vast_picture())

    async def floods(self, client: httpx.AsyncClient) -> None:
        """More than the server reads."""
        await self.refused(client, 413, "data:image/png;base64," + "A" * (1 << 21))

    async def refused(self, client: httpx.AsyncClient, status: int, uri: str) -> None:
        """Asks about what no server can see."""
        shown = {"type": "image_url", "image_url": {"url": uri}}
        answer = await client.post(PATH, json=self.question(messages=[{"role": "user", "content": [shown]}]))
        if answer.status_code != status:
            raise Failed(f"{answer.status_code} and not {status}: {answer.text[:200]}")


async def watch(server: Process, crowd: Crowd, minutes: float, clients: int) -> list[int]:
    """Lets the crowd in; the server's memory once a second."""
    until, memory = time.monotonic() + 60 * minutes, []
    staying = asyncio.ensure_future(crowd.stay(until, clients))
    while not staying.done():
        memory.append(server.memory())
        await asyncio.wait([staying], timeout=1)
    await staying
    return memory


def growth(memory: list[int]) -> float:
    """How the largest part after the warm-up compares with the first; each part by its median."""
    rest = memory[int(WARM_UP * len(memory)) :]
    size = max(1, len(rest) // PARTS)
    medians = [
        statistics.median(rest[start : start + size]) for start in range(0, len(rest) - size + 1, size)
    ]
    return max(medians) / medians[0]


def held(server: Process) -> dict[str, float]:
    """What the server says it still holds for anyone, once it holds nothing or has had its time."""
    ends = time.monotonic() + REST
    while True:
        lines = httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        found = {name: float(told[f"idefics_{name}"]) for name in ("visits", "queue", "batch")}
        pages, free = float(told["idefics_cache_pages"]), float(told["idefics_cache_pages_free"])
        found["pages"] = pages - 1 - free  # one is never given out
        if not any(found.values()) or time.monotonic() > ends:
            return found
        time.sleep(0.1)


def main() -> None:
    """Soaks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    report = Report("soak")
    with process(
        "-m", "idefics", "serve", "--model", str(DEMO), "--name", "demo", "--body-megabytes", "1"
    ) as server:
        crowd = Crowd(server.url, "demo")
        memory = asyncio.run(watch(server, crowd, given.minutes, given.clients))
        left = held(server)
    case = f"{given.minutes:g} minutes, {given.clients} clients"
    for name, number in sorted(crowd.outcomes.items()):
        report.figure(case, name, number, "requests")
    for share in (0, WARM_UP, 1):
        at = memory[int(share * (len(memory) - 1))] / 2**20
        report.figure(case, f"memory after {share:.0%} of the time", at, "MiB")
    for name, number in left.items():
        report.target(f"{name} still held at the end", number, at_most=0)
    report.target("requests that went otherwise than they should", len(crowd.wrong), at_most=0)
    if given.minutes >= LONG:
        report.target(
            "memory after the warm-up: the largest part by the first", growth(memory), at_most=GROWTH
        )
    report.close()
    raise SystemExit(
        any(not row["reached"] for row in report.targets) and "\n".join(crowd.wrong[:20] or ["see above"])
    )


if __name__ == "__main__":
    main()
