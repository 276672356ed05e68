"""Reads the answers of a batch: while it runs from its ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idefics.batch.ledger import Ledger
from idefics.errors import OutputError
from idefics.server.response_fields import ResponseFields

MAX_RESULT_BYTES = 4 << 20  # of the lines of one response; at least one line is in it


class BatchResponse(ResponseFields):
    """The answer to a request of a batch."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class BatchLineFailure(ResponseFields):
    """Why a request of a batch was not executed."""

    code: str
    message: str


class BatchOutputLine(ResponseFields):
    """A line of the output of a batch, as its output files have it."""

    id: str
    custom_id: str
    response: BatchResponse | None
    error: BatchLineFailure | None


def read_results(ledger_path: Path, after: int, limit: int) -> tuple[list[dict[str, Any]], int, bool]:
    """Reads lines of the output of a batch that runs, in the order in which they were answered.

    Args:
        ledger_path: the batch's ledger; without one, nothing is answered yet, or the batch has just ended.
        after: the number of the line before the first.
        limit: number of lines.

    Returns:
        The lines, the number of the last (`after` if there are none), and whether there are further ones.
    """
    lines: list[dict[str, Any]] = []
    last, num_bytes = after, 0
    try:
        with Ledger(ledger_path, read_only=True) as ledger:
            for row, answer in ledger.rows_after(after):
                if len(lines) == limit or num_bytes > MAX_RESULT_BYTES:
                    return lines, last, True
                lines.append(json.loads(answer["text"]))
                last, num_bytes = row.number, num_bytes + len(answer["text"])
    except OutputError:
        pass
    return lines, last, False
