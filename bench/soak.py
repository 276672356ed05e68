"""A long run with misbehaving clients: memory is constant, valid requests are answered, nothing is held at the end.

`python bench/soak.py [--minutes 10] [--clients 16]`. A third of the requests is valid and has to be answered, some
are read slowly; the others disconnect during the stream or in the queue, send half of the announced body, a broken
picture, one with too many pixels, or too many bytes. Pictures repeat, so the caches are full after the warm-up.
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
from harness import BenchmarkReport
from server_clients import (
    CHAT_COMPLETIONS_PATH,
    RequestFailed,
    ServerProcess,
    chat_request,
    open_async_client,
    start_server,
    stream_answer,
)

NUM_STOCK_REQUESTS = 48  # with two pictures each at most
MAX_TOKENS = 24
WARM_UP_FRACTION = 0.3  # of the duration
MIN_MINUTES_FOR_GROWTH = 5  # a shorter run is warm-up only
NUM_PARTS = 10  # of the rest; their medians are compared
MAX_MEMORY_GROWTH = 1.05
RELEASE_TIMEOUT = 30.0  # seconds until everything has to be released
DEMO_FOLDER = Path(idefics.__file__).parent / "demo" / "idefics3"


def oversized_png_data_uri() -> str:
    """A PNG whose header says 900 million pixels, as data URI."""
    ihdr_chunk = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    file = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr_chunk + struct.pack(">I", zlib.crc32(ihdr_chunk))
    )
    return "data:image/png;base64," + base64.b64encode(file).decode()


class SoakClients:
    """Clients that send random kinds of requests.

    Attributes:
        num_requests_by_kind: number of requests of each kind.
        failures: unexpected results.
    """

    def __init__(self, url: str, model: str, seed: int = 0) -> None:
        self.url, self.model = url, model
        self.stock_requests = [
            chat_request(number, model=model, max_tokens=MAX_TOKENS) for number in range(NUM_STOCK_REQUESTS)
        ]
        self.rng = random.Random(seed)
        self.num_requests_by_kind: Counter[str] = Counter()
        self.failures: list[str] = []
        valid_kinds: list[Callable[[httpx.AsyncClient], Awaitable[None]]] = [
            self.read_stream,
            self.wait_for_answer,
            self.read_stream_slowly,
        ]
        invalid_kinds = [
            self.abandon_stream,
            self.cancel_while_queued,
            self.send_half_the_body,
            self.send_truncated_picture,
            self.send_oversized_picture,
            self.send_oversized_body,
        ]
        self.request_kinds = [*valid_kinds, *invalid_kinds]

    async def run_until(self, deadline: float, num_clients: int) -> None:
        """Runs `num_clients` clients until `time.monotonic()` reaches the deadline."""

        async def run_client(client: httpx.AsyncClient) -> None:
            while time.monotonic() < deadline:
                await self.send_request(client, self.rng.choice(self.request_kinds))

        async with open_async_client(self.url) as client:
            await asyncio.gather(*(run_client(client) for _ in range(num_clients)))

    async def send_request(
        self, client: httpx.AsyncClient, kind: Callable[[httpx.AsyncClient], Awaitable[None]]
    ) -> None:
        """Sends one request of a kind and records a failure."""
        name = kind.__name__.replace("_", " ")
        self.num_requests_by_kind[name] += 1
        try:
            async with asyncio.timeout(120):
                await kind(client)
        except (RequestFailed, httpx.HTTPError, OSError) as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")

    def make_request(self, **extra_fields: Any) -> dict[str, Any]:
        """A request with a unique text, so that no answer comes from the prefix cache alone."""
        request = self.rng.choice(self.stock_requests)
        *image_parts, text_part = request["messages"][0]["content"]
        unique_text_part = {"type": "text", "text": f"{text_part['text']} {self.rng.getrandbits(32):x}"}
        return {
            **request,
            "messages": [{"role": "user", "content": [*image_parts, unique_text_part]}],
            **extra_fields,
        }

    async def read_stream(self, client: httpx.AsyncClient) -> None:
        """Reads a stream to its end."""
        await stream_answer(client, self.make_request())

    async def read_stream_slowly(self, client: httpx.AsyncClient) -> None:
        """Reads a stream with a pause after each line."""
        await stream_answer(client, self.make_request(), seconds_per_line=0.1)

    async def wait_for_answer(self, client: httpx.AsyncClient) -> None:
        """Waits for an answer that is not streamed."""
        answer = await client.post(CHAT_COMPLETIONS_PATH, json=self.make_request(stream=False))
        if answer.status_code != 200 or not answer.json()["choices"][0]["finish_reason"]:
            raise RequestFailed(f"{answer.status_code}: {answer.text[:200]}")

    async def abandon_stream(self, client: httpx.AsyncClient) -> None:
        """Disconnects after a few lines of a long stream."""
        request = self.make_request(temperature=2, max_tokens=400)
        async with client.stream("POST", CHAT_COMPLETIONS_PATH, json=request) as answer:
            lines = answer.aiter_lines()
            for _ in range(self.rng.randint(1, 6)):
                await anext(lines, "")

    async def cancel_while_queued(self, client: httpx.AsyncClient) -> None:
        """Disconnects within 0.3 seconds, usually in the queue."""
        response_task = asyncio.ensure_future(
            client.post(CHAT_COMPLETIONS_PATH, json=self.make_request(stream=False))
        )
        await asyncio.wait([response_task], timeout=self.rng.uniform(0, 0.3))
        if not response_task.cancel():
            response_task.result()

    async def send_half_the_body(self, client: httpx.AsyncClient) -> None:
        """Sends part of the announced body and disconnects."""
        host, port = client.base_url.host, client.base_url.port
        content = json.dumps(self.make_request()).encode()
        _, writer = await asyncio.open_connection(host, port)
        head = f"POST {CHAT_COMPLETIONS_PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content[: self.rng.randrange(len(content))])
        await writer.drain()
        writer.close()

    async def send_truncated_picture(self, client: httpx.AsyncClient) -> None:
        """Sends a truncated picture; status 400 is expected."""
        image_request = self.rng.choice(
            [one for one in self.stock_requests if len(one["messages"][0]["content"]) > 1]
        )
        uri = image_request["messages"][0]["content"][0]["image_url"]["url"]
        await self.expect_refusal(client, 400, uri[: len(uri) * self.rng.randint(20, 80) // 400 * 4])

    async def send_oversized_picture(self, client: httpx.AsyncClient) -> None:
        """Sends a small file with too many pixels; status 400 is expected."""
        await self.expect_refusal(client, 400, oversized_png_data_uri())

    async def send_oversized_body(self, client: httpx.AsyncClient) -> None:
        """Sends a body above the limit; status 413 is expected."""
        await self.expect_refusal(client, 413, "data:image/png;base64," + "A" * (1 << 21))

    async def expect_refusal(self, client: httpx.AsyncClient, status: int, uri: str) -> None:
        """Sends a request with a bad picture and records another status than the expected one."""
        image_part = {"type": "image_url", "image_url": {"url": uri}}
        answer = await client.post(
            CHAT_COMPLETIONS_PATH,
            json=self.make_request(messages=[{"role": "user", "content": [image_part]}]),
        )
        if answer.status_code != status:
            raise RequestFailed(f"{answer.status_code} and not {status}: {answer.text[:200]}")


async def run_soak(
    server: ServerProcess, clients: SoakClients, minutes: float, num_clients: int
) -> list[int]:
    """Runs all clients; returns the server's resident memory in bytes, once a second."""
    deadline, resident_bytes = time.monotonic() + 60 * minutes, []
    load_task = asyncio.ensure_future(clients.run_until(deadline, num_clients))
    while not load_task.done():
        resident_bytes.append(server.resident_bytes())
        await asyncio.wait([load_task], timeout=1)
    await load_task
    return resident_bytes


def memory_growth(resident_bytes: list[int]) -> float:
    """The largest median of the parts after the warm-up, divided by that of the first part."""
    after_warm_up = resident_bytes[int(WARM_UP_FRACTION * len(resident_bytes)) :]
    part_size = max(1, len(after_warm_up) // NUM_PARTS)
    medians = [
        statistics.median(after_warm_up[start : start + part_size])
        for start in range(0, len(after_warm_up) - part_size + 1, part_size)
    ]
    return max(medians) / medians[0]


def wait_until_released(server: ServerProcess) -> dict[str, float]:
    """Waits until `/metrics` reports nothing held, or the timeout; returns what is held by metric."""
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while True:
        lines = httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
        metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        held_by_metric = {name: float(metrics[f"idefics_{name}"]) for name in ("visits", "queue", "batch")}
        num_pages, num_free_pages = (
            float(metrics["idefics_cache_pages"]),
            float(metrics["idefics_cache_pages_free"]),
        )
        held_by_metric["pages"] = num_pages - 1 - num_free_pages  # one is never given out
        if not any(held_by_metric.values()) or time.monotonic() > deadline:
            return held_by_metric
        time.sleep(0.1)


def main() -> None:
    """Reads the command line, runs the clients and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    report = BenchmarkReport("soak")
    with start_server(
        "-m", "idefics", "serve", "--model", str(DEMO_FOLDER), "--name", "demo", "--body-megabytes", "1"
    ) as server:
        clients = SoakClients(server.url, "demo")
        resident_bytes = asyncio.run(run_soak(server, clients, arguments.minutes, arguments.clients))
        held_by_metric = wait_until_released(server)
    case = f"{arguments.minutes:g} minutes, {arguments.clients} clients"
    for name, number in sorted(clients.num_requests_by_kind.items()):
        report.add_figure(case, name, number, "requests")
    for share in (0, WARM_UP_FRACTION, 1):
        mebibytes = resident_bytes[int(share * (len(resident_bytes) - 1))] / 2**20
        report.add_figure(case, f"memory after {share:.0%} of the time", mebibytes, "MiB")
    for name, number in held_by_metric.items():
        report.add_target(f"{name} still held at the end", number, max_value=0)
    report.add_target("requests with an unexpected result", len(clients.failures), max_value=0)
    if arguments.minutes >= MIN_MINUTES_FOR_GROWTH:
        report.add_target(
            "memory after the warm-up: the largest part by the first",
            memory_growth(resident_bytes),
            max_value=MAX_MEMORY_GROWTH,
        )
    report.print_report()
    raise SystemExit(
        any(not row["reached"] for row in report.targets)
        and "\n".join(clients.failures[:20] or ["see above"])
    )


if __name__ == "__main__":
    main()
