"""OpenAI's batch files: the requests of a batch, a line each, and the lines of its output.

https://platform.openai.com/docs/api-reference/batch/request-input and .../batch/request-output have the formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from idefics.batch.export import Exporter
from idefics.batch.records import LONE_SURROGATE, OutputRecord, compact_json
from idefics.errors import BadPrompt, OutputError
from idefics.processing.json_values import has_more_values
from idefics.tasks import TASKS

MAX_FILE_BYTES, MAX_LINES = 200_000_000, 50_000  # of a batch file; OpenAI's limits
BATCH_URLS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    *(f"/v1/images/tasks/{name}" for name in TASKS),
)
REQUIRED_FIELDS = ("custom_id", "method", "url", "body")  # of a line
MAX_CUSTOM_ID_CHARACTERS = 512
MAX_LISTED_LINE_ERRORS = 50  # of one file
KEY_BYTES = 16
# What a ledger says of the run of a batch file, whose rows have their settings themselves.
OPENAI_BATCH_TASK = "openai-batch"


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch.

    Attributes:
        custom_id: identifies it in its batch.
        url: the route that answers it, one of `BATCH_URLS`.
        body: its body as JSON.
    """

    custom_id: str
    url: str
    body: bytes

    @property
    def key(self) -> bytes:
        """What its answer is kept under in the ledger of its batch: SHA-256 of the request, shortened to 16 bytes."""
        parts = json.dumps([self.custom_id, self.url]).encode() + self.body
        return hashlib.sha256(parts).digest()[:KEY_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """Why a line of a file is no request of a batch, as OpenAI reports it in `errors.data` of a failed batch.

    Attributes:
        line: its number, from 1; None: the error is about the whole file.
        code: the error, for programs.
        message: for people.
        param: the field that is wrong; None if it is none.
    """

    line: int | None = None
    code: str
    message: str
    param: str | None = None


class _InvalidLine(Exception):
    """A line is no request of a batch. Its arguments are the code, the message and the field of `LineError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFileLimits:
    """The limits of a batch file, beyond which it is refused.

    Attributes:
        line_bytes: size of a line.
        line_values: JSON values of a line.
        lines: number of lines; None: any number.
    """

    line_bytes: int
    line_values: int
    lines: int | None = None


@dataclass(slots=True)
class BatchFileCheck:
    """What reading a batch file once has found.

    Attributes:
        num_lines: its requests.
        errors: what is wrong, at most `MAX_LISTED_LINE_ERRORS`; empty if nothing is.
    """

    num_lines: int = 0
    errors: list[LineError] = field(default_factory=list)

    def add_error(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        """Adds an error, unless there are many already."""
        if len(self.errors) < MAX_LISTED_LINE_ERRORS:
            self.errors.append(LineError(line=line, code=code, message=message, param=param))


def check_batch_file(path: Path, limits: BatchFileLimits, endpoint: str | None = None) -> BatchFileCheck:
    """Reads a batch file and checks every line, as OpenAI does before a batch is in progress.

    The requests themselves are checked when they are answered.

    Args:
        path: the file.
        limits: of the file.
        endpoint: the url that all lines must have; None: each may have another one of `BATCH_URLS`.

    Raises:
        OutputError: the file cannot be read.
    """
    check, line_by_id = BatchFileCheck(), dict[bytes, int]()
    for number, text in _numbered_lines(path, limits.line_bytes):
        try:
            line = _parse_line(text, limits)
        except _InvalidLine as error:
            check.add_error(number, *error.args)
            continue
        if endpoint is not None and line.url != endpoint:
            message = (
                f"the url is {line.url}, and the endpoint of the batch is {endpoint}: send one batch for each"
            )
            check.add_error(number, "url_mismatch", message, "url")
        first = line_by_id.setdefault(hashlib.sha256(line.custom_id.encode()).digest()[:8], number)
        if first != number:
            message = f"the custom_id {line.custom_id[:100]!r} is that of line {first}: give each line one of its own"
            check.add_error(number, "duplicate_custom_id", message, "custom_id")
        check.num_lines += 1
        if limits.lines is not None and check.num_lines > limits.lines:
            message = f"the file has more than {limits.lines:,} requests: split it"
            check.add_error(None, "too_many_tasks", message)
            return check
    if not check.num_lines and not check.errors:
        check.add_error(None, "empty_file", "the file has no requests: give one JSON object per line")
    return check


def read_batch_lines(path: Path, limits: BatchFileLimits) -> Iterator[BatchLine]:
    """Yields the requests of a file that `check_batch_file` has found valid.

    Raises:
        OutputError: the file cannot be read.
        BadPrompt: a line is invalid; the file has changed since it was checked.
    """
    for number, text in _numbered_lines(path, limits.line_bytes):
        try:
            yield _parse_line(text, limits)
        except _InvalidLine as error:
            raise BadPrompt(f"{path} line {number}: {error.args[1]}") from None


def _numbered_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank with their numbers; of a longer line, its first `max_bytes` and one more."""
    number = 0
    try:
        with path.open("rb") as file:
            while text := file.readline(max_bytes + 1):
                number += 1
                rest = text
                while len(text) > max_bytes and rest and not rest.endswith(b"\n"):
                    rest = file.readline(1 << 20)  # to the end of the line, without keeping it
                if not text.isspace():
                    yield number, text
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}") from None


def _parse_line(text: bytes, limits: BatchFileLimits) -> BatchLine:
    """Reads one line. Raises _InvalidLine if it is no request of a batch."""
    if len(text) > limits.line_bytes:
        raise _InvalidLine(
            "line_too_large", f"the line is larger than {limits.line_bytes:,} bytes: send smaller pictures"
        )
    if has_more_values(text, limits.line_values):
        raise _InvalidLine(
            "invalid_json_line",
            f"the line has more than {limits.line_values:,} JSON values, which is the limit: send shorter lists",
        )
    try:
        request = json.loads(text.decode("utf-8-sig"))
        body = (
            json.dumps(request["body"]).encode() if isinstance(request, dict) and "body" in request else b""
        )
    except (ValueError, RecursionError):
        raise _InvalidLine("invalid_json_line", "the line is not valid JSON") from None
    if not isinstance(request, dict):
        raise _InvalidLine("invalid_json_line", 'the line is not a JSON object: it reads {"custom_id": ...}')
    for name in REQUIRED_FIELDS:
        if name not in request:
            raise _InvalidLine("missing_required_parameter", f"{name} is missing", name)
    _check_fields(**{name: request[name] for name in REQUIRED_FIELDS})
    return BatchLine(request["custom_id"], request["url"], body)


def _check_fields(custom_id: Any, method: Any, url: Any, body: Any) -> None:
    """Checks the values of a line. Raises _InvalidLine if one is not allowed."""
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARACTERS:
        message = f"the custom_id is no text of 1 to {MAX_CUSTOM_ID_CHARACTERS} characters"
        raise _InvalidLine("invalid_custom_id", message, "custom_id")
    if LONE_SURROGATE.search(custom_id):
        message = "the custom_id has a lone surrogate, which is half of a character: send whole characters"
        raise _InvalidLine("invalid_custom_id", message, "custom_id")
    if method != "POST":
        raise _InvalidLine("invalid_method", f"the method is {str(method)[:20]!r}: it must be POST", "method")
    if url not in BATCH_URLS:
        message = (
            f"the url is {str(url)[:100]!r}: it must be {', '.join(BATCH_URLS[:-1])} or {BATCH_URLS[-1]}"
        )
        raise _InvalidLine("invalid_url", message, "url")
    if not isinstance(body, dict):
        raise _InvalidLine("invalid_body", "the body is not a JSON object", "body")
    if body.get("stream"):
        message = "the body has stream: true, and the answers of a batch cannot be streamed: leave it out"
        raise _InvalidLine("invalid_request", message, "body.stream")


def answered_line(custom_id: str, status: int, request_id: str, body: Any) -> str:
    """The line of the output for a request that was answered, with an error of the API too."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _output_line(custom_id, response, None)


def unanswered_line(custom_id: str, code: str, message: str) -> str:
    """The line of the output for a request that has no answer."""
    return _output_line(custom_id, None, {"code": code, "message": message})


def _output_line(custom_id: str, response: Any, error: Any) -> str:
    line = {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return compact_json(line)


class OpenAIBatchExporter(Exporter):
    r"""OpenAI's form of output: the texts of the records, which are JSON objects, with "\n" at the end of each."""

    def line(self, record: OutputRecord) -> str:
        """The text of a record."""
        return f"{record.text}\n"
