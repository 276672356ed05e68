"""Clients of a chat server, many at once, and a server as a process of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import PIL.Image

import idefics
from harness import ROOT

PICTURES = sorted((Path(idefics.__file__).parent / "demo" / "pictures").glob("*.png"))
PATH = "/v1/chat/completions"
START = 300.0  # seconds that a server may take until it answers
PATIENCE = 600.0  # seconds that a client waits for the next piece of an answer


class Failed(Exception):
    """A request that was well formed has not been answered."""


@dataclass(frozen=True)
class Asked:
    """A request that was answered.

    Attributes:
        first: seconds to the first words; to the end where there were none.
        total: seconds to the end.
    """

    first: float
    total: float
    text: str


def data_uri(number: int) -> str:
    """A bundled picture, no two numbers the same: one pixel tells them apart."""
    picture = PIL.Image.open(PICTURES[number % len(PICTURES)]).convert("RGB")
    picture.putpixel((0, 0), (number & 255, number >> 8 & 255, number >> 16 & 255))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def body(number: int, *, model: str, tokens: int, **more: Any) -> dict[str, Any]:
    """A streaming request: of three, one has a picture, one has two, and one only words."""
    shown = [
        {"type": "image_url", "image_url": {"url": data_uri(2 * number + other)}}
        for other in range((1, 2, 0)[number % 3])
    ]
    words = {"type": "text", "text": f"Question {number}: what is there?"}
    messages = [{"role": "user", "content": [*shown, words]}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        **more,
    }


async def ask(client: httpx.AsyncClient, asked: dict[str, Any], *, pause: float = 0.0) -> Asked:
    """Reads a streamed answer to its end, and rests for `pause` seconds after each line of it.

    Raises:
        Failed: it was refused, or ended with an error, or not at all.
    """
    began, first, text, line = time.perf_counter(), 0.0, "", ""
    async with client.stream("POST", PATH, json=asked) as answer:
        if answer.status_code != 200:
            raise Failed(f"{answer.status_code}: {(await answer.aread())[:300]!r}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise Failed(str(chunk["error"]))
                piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if piece and not first:
                    first = time.perf_counter() - began
                text += piece
            await asyncio.sleep(pause)
    total = time.perf_counter() - began
    return Asked(first or total, total, text)


def opened(url: str) -> httpx.AsyncClient:
    """A client with as many connections as it is asked for."""
    return httpx.AsyncClient(
        base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None), trust_env=False
    )


def opened_alone(url: str) -> httpx.Client:
    """A client that asks one question after another, on one connection."""
    return httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)


async def load(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> tuple[float, list[Asked]]:
    """So many clients ask, each its next question when it has an answer: (seconds, answers in the order asked)."""
    answers: dict[int, Asked] = {}
    left = iter(enumerate(bodies))

    async def one(client: httpx.AsyncClient) -> None:
        for number, asked in left:
            answers[number] = await ask(client, asked)

    async with opened(url) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return time.perf_counter() - began, [answers[number] for number in sorted(answers)]


@dataclass(frozen=True)
class Process:
    """A running server."""

    url: str
    running: subprocess.Popen[bytes]

    def memory(self) -> int:
        """Bytes that it holds (resident)."""
        lines = Path(f"/proc/{self.running.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@contextmanager
def process(*arguments: str) -> Iterator[Process]:
    """A server by the arguments of Python, those of its port added; it is there when it is healthy.

    Raises:
        Failed: it ended instead; the message is the last that it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=environment) as running,
    ):
        server, is_up = Process(f"http://127.0.0.1:{port}", running), False
        try:
            is_up = _is_up(server)
            if is_up:
                yield server
        except (httpx.TransportError, OSError):
            if running.poll() is None:
                raise
        finally:
            ended = running.poll()
            running.kill()
        if ended or not is_up:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"the server ended with {ended}: {lines[-1] if lines else 'it said nothing'}")


def _is_up(server: Process) -> bool:
    ends = time.monotonic() + START
    while server.running.poll() is None and time.monotonic() < ends:
        try:
            if httpx.get(f"{server.url}/health", timeout=5, trust_env=False).status_code == 200:
                return True
        except httpx.TransportError:
            time.sleep(0.05)
    return False
