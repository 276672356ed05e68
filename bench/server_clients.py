"""A server as a child process, and concurrent clients of its chat route."""

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

PICTURE_PATHS = sorted((Path(idefics.__file__).parent / "demo" / "pictures").glob("*.png"))
CHAT_COMPLETIONS_PATH = "/v1/chat/completions"
STARTUP_TIMEOUT = 300.0  # seconds that a server may take until it answers
READ_TIMEOUT = 600.0  # seconds that a client waits for the next piece of an answer


class RequestFailed(Exception):
    """A well-formed request was not answered."""


@dataclass(frozen=True)
class StreamedAnswer:
    """The answer to a request.

    Attributes:
        first_token_seconds: seconds to the first text; to the end if there was none.
        total_seconds: seconds to the end.
        text: the whole text.
    """

    first_token_seconds: float
    total_seconds: float
    text: str


def unique_image_data_uri(number: int) -> str:
    """A bundled picture with one pixel changed, so that each number gives another picture."""
    picture = PIL.Image.open(PICTURE_PATHS[number % len(PICTURE_PATHS)]).convert("RGB")
    picture.putpixel((0, 0), (number & 255, number >> 8 & 255, number >> 16 & 255))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chat_request(request_index: int, *, model: str, max_tokens: int, **extra_fields: Any) -> dict[str, Any]:
    """A streaming request; of three in a row one has a picture, one has two, and one has none."""
    image_parts = [
        {"type": "image_url", "image_url": {"url": unique_image_data_uri(2 * request_index + other)}}
        for other in range((1, 2, 0)[request_index % 3])
    ]
    text_part = {"type": "text", "text": f"Question {request_index}: what is there?"}
    messages = [{"role": "user", "content": [*image_parts, text_part]}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        **extra_fields,
    }


async def stream_answer(
    client: httpx.AsyncClient, request: dict[str, Any], *, seconds_per_line: float = 0.0
) -> StreamedAnswer:
    """Reads a streamed answer to its end, waiting `seconds_per_line` after each line.

    Raises:
        RequestFailed: the request was refused, or the stream ended with an error.
    """
    started, first_token_seconds, text, line = time.perf_counter(), 0.0, "", ""
    async with client.stream("POST", CHAT_COMPLETIONS_PATH, json=request) as answer:
        if answer.status_code != 200:
            raise RequestFailed(f"{answer.status_code}: {(await answer.aread())[:300]!r}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RequestFailed(str(chunk["error"]))
                delta_text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if delta_text and not first_token_seconds:
                    first_token_seconds = time.perf_counter() - started
                text += delta_text
            await asyncio.sleep(seconds_per_line)
    total_seconds = time.perf_counter() - started
    return StreamedAnswer(first_token_seconds or total_seconds, total_seconds, text)


def open_async_client(url: str) -> httpx.AsyncClient:
    """A client without a limit on connections."""
    return httpx.AsyncClient(
        base_url=url, timeout=READ_TIMEOUT, limits=httpx.Limits(max_connections=None), trust_env=False
    )


def open_client(url: str) -> httpx.Client:
    """A synchronous client."""
    return httpx.Client(base_url=url, timeout=READ_TIMEOUT, trust_env=False)


async def run_load(
    url: str, requests: Sequence[dict[str, Any]], num_clients: int
) -> tuple[float, list[StreamedAnswer]]:
    """Sends requests from `num_clients` concurrent clients: (seconds, answers in the order of the requests)."""
    answers: dict[int, StreamedAnswer] = {}
    remaining = iter(enumerate(requests))

    async def run_client(client: httpx.AsyncClient) -> None:
        for number, asked in remaining:
            answers[number] = await stream_answer(client, asked)

    async with open_async_client(url) as client:
        started = time.perf_counter()
        await asyncio.gather(*(run_client(client) for _ in range(num_clients)))
        return time.perf_counter() - started, [answers[number] for number in sorted(answers)]


@dataclass(frozen=True)
class ServerProcess:
    """A running server process."""

    url: str
    popen: subprocess.Popen[bytes]

    def resident_bytes(self) -> int:
        """Resident memory in bytes."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@contextmanager
def start_server(*arguments: str) -> Iterator[ServerProcess]:
    """Starts a Python process with `arguments` and a free port, and waits until `/health` answers; kills it afterwards.

    Raises:
        RequestFailed: the process ended; the message is its last line of output.
    """
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1]
    command = [sys.executable, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile() as log_file,
        subprocess.Popen(command, stdout=log_file, stderr=log_file, env=environment) as popen,
    ):
        server, is_up = ServerProcess(f"http://127.0.0.1:{port}", popen), False
        try:
            is_up = _wait_until_healthy(server)
            if is_up:
                yield server
        except (httpx.TransportError, OSError):
            if popen.poll() is None:
                raise
        finally:
            exit_code = popen.poll()
            popen.kill()
        if exit_code or not is_up:
            log_file.seek(0)
            lines = log_file.read().decode(errors="replace").strip().splitlines()
            raise RequestFailed(
                f"the server ended with {exit_code}: {lines[-1] if lines else 'it said nothing'}"
            )


def _wait_until_healthy(server: ServerProcess) -> bool:
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while server.popen.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{server.url}/health", timeout=5, trust_env=False).status_code == 200:
                return True
        except httpx.TransportError:
            time.sleep(0.05)
    return False
