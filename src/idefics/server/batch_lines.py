"""Answers the lines of a batch file by requests that the process sends to its own app; a ledger keeps the answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from idefics.batch.ledger import Ledger, LedgerRow
from idefics.batch.openai_batch import BatchFileLimits, BatchLine, answered_line, read_batch_lines
from idefics.server import request_ids
from idefics.server.admission import AdmissionControl
from idefics.server.middleware import IN_PROCESS_SCOPE_KEY
from idefics.server.routing import MAX_JSON_VALUES
from idefics.server.settings import Settings

CLIENT_NAME = "batch"  # in the access log, in the place of the client's address


@dataclass(frozen=True, slots=True)
class InProcessResponse:
    """The response of the app.

    Attributes:
        status: HTTP status.
        request_id: its `x-request-id`.
        body: the JSON object.
        retry_after: seconds after which the same request may succeed; 0 if the response has none.
    """

    status: int
    request_id: str
    body: Any
    retry_after: int

    @property
    def is_error(self) -> bool:
        """Whether it has an error status."""
        return self.status != 200

    @property
    def error_message(self) -> str:
        """The message of an error."""
        message: str = self.body["error"]["message"]
        return message

    @property
    def num_tokens(self) -> int:
        """Number of generated tokens; 0 for an error."""
        usage = self.body.get("usage", {})
        tokens: int = usage.get("completion_tokens", usage.get("output_tokens", 0))
        return tokens


async def post_in_process(app: ASGIApp, path: str, body: bytes) -> InProcessResponse:
    """Sends a POST request to the app: the response is that of a live request, and needs no key.

    Admission control treats it as a background request. Cancelling the task that waits ends the request.

    Args:
        path: of a route that answers with JSON.
        body: JSON.
    """
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    content, head = bytearray(), dict[str, Any]()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        never: Message = await asyncio.get_running_loop().create_future()  # the client does not disconnect
        return never

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            content.extend(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": (CLIENT_NAME, 0),
        IN_PROCESS_SCOPE_KEY: True,
    }
    await app(scope, receive, send)
    response_headers = Headers(raw=head["headers"])
    return InProcessResponse(
        head["status"],
        response_headers[request_ids.REQUEST_ID_HEADER],
        json.loads(content),
        int(response_headers.get("retry-after", 0)),
    )


LINE_OVERHEAD = 1 << 16  # bytes of a line without its body, whose size is limited like that of any request
SLOT_SECONDS = 0.1  # between two attempts to begin a line
SERVER_BUSY, SERVER_CLOSING = 429, 503  # statuses with which a line is tried again


def batch_file_limits(settings: Settings, max_lines: int | None = None) -> BatchFileLimits:
    """The limits of a batch file: those of the bodies of requests, and a number of lines."""
    line_bytes = (settings.body_megabytes << 20) + LINE_OVERHEAD
    return BatchFileLimits(line_bytes=line_bytes, line_values=MAX_JSON_VALUES, lines=max_lines)


@dataclass
class LineSlots:
    """How many lines of all batches are answered at the same time: fewer, down to one, while clients use the server.

    Attributes:
        admission: knows how many requests clients have sent.
        max_lines: the number while there are none.
        num_used: how many are answered now.
    """

    admission: AdmissionControl
    max_lines: int
    num_used: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    async def acquire(self, should_stop: Callable[[], bool]) -> bool:
        """Waits for a slot, which the caller must `release`; returns False as soon as `should_stop()` is true."""
        while not should_stop():
            if self.num_used < max(1, self.max_lines - self.admission.usage["requests"]):
                self.num_used += 1
                return True
            self._released.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(SLOT_SECONDS):
                    await self._released.wait()
        return False

    def release(self) -> None:
        """Frees a slot."""
        self.num_used -= 1
        self._released.set()


@dataclass
class BatchLineRunner:
    """Answers the lines of a batch file that have no answer in a ledger, several at the same time.

    A line is a row of the ledger, and its `custom_id` the row's name. What is in hand when the run ends early is not
    kept, and is computed by the next run.

    Attributes:
        app: its routes answer.
        slots: the slots of all runners of the app.
        ledger: keeps the answers; of this batch alone.
        run_number: the number of the run in the ledger.
        path: the file, which `check_batch_file` has found valid.
        limits: of the file.
        on_answered: called with each line that was answered, and the response.
        should_stop: whether no more lines are to begin.
        max_lines: only the first lines are answered; None: all.
        is_closing: whether the server shuts down.
    """

    app: ASGIApp
    slots: LineSlots
    ledger: Ledger
    run_number: int
    path: Path
    limits: BatchFileLimits
    on_answered: Callable[[BatchLine, InProcessResponse], None]
    should_stop: Callable[[], bool]
    max_lines: int | None = None
    is_closing: bool = False

    async def run(self) -> None:
        """Answers the lines. Those in hand when `should_stop` becomes true are answered too.

        Raises:
            OutputError: the file or the ledger cannot be used; the answers of before are kept.
        """
        lines, running = self._unanswered_lines(), set[asyncio.Task[None]]()
        with ThreadPoolExecutor(1, thread_name_prefix="idefics-batch-lines") as thread:
            try:
                while await self.slots.acquire(lambda: self.should_stop() or self.is_closing):
                    line = await asyncio.get_running_loop().run_in_executor(thread, next, lines, None)
                    if line is None:
                        self.slots.release()
                        break
                    running.add(asyncio.create_task(self._answer(line, thread)))
                    done = {task for task in running if task.done()}
                    running -= done
                    for task in done:
                        task.result()
                await asyncio.gather(*running)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def _unanswered_lines(self) -> Iterator[BatchLine]:
        """Yields the lines without an answer. Runs in the thread of `run`."""
        for index, line in enumerate(read_batch_lines(self.path, self.limits)):
            if self.max_lines is not None and index >= self.max_lines:
                return
            row = self.ledger.find_row(self.run_number, line.custom_id)
            if row is None or row.key != line.key:
                yield line

    async def _answer(self, line: BatchLine, thread: ThreadPoolExecutor) -> None:
        """Answers a line and stores the answer, unless the server shuts down. Releases its slot."""
        try:
            start_time = time.monotonic()
            response = await post_in_process(self.app, line.url, line.body)
            while response.status == SERVER_BUSY:
                await asyncio.sleep(response.retry_after)
                if self.should_stop():
                    return
                response = await post_in_process(self.app, line.url, line.body)
            if response.status == SERVER_CLOSING:
                self.is_closing = True
                return
            seconds = round(time.monotonic() - start_time, 3)
            await asyncio.get_running_loop().run_in_executor(thread, self._store, line, response, seconds)
            self.on_answered(line, response)
        finally:
            self.slots.release()

    def _store(self, line: BatchLine, response: InProcessResponse, seconds: float) -> None:
        """Stores the line of the output as the text of the answer of a row."""
        text = answered_line(line.custom_id, response.status, response.request_id, response.body)
        answer: dict[str, Any] = {"text": text, "tokens": response.num_tokens, "seconds": seconds}
        if response.is_error:
            answer |= {"error_type": f"HTTP {response.status}", "error": response.error_message}
        row = LedgerRow(
            run=self.run_number,
            name=line.custom_id,
            key=line.key,
            id=line.custom_id,
            path=line.custom_id,
            prompt="",
        )
        self.ledger.add_row(row, answer)
