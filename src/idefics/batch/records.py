"""What a batch run hands on: `OutputRecord`, one row of its output, and `RunSummary`, what the report says about it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRecord:
    """One row of the output of a batch run: an answer, or an error. The fields are in the order of the columns.

    Attributes:
        id: the value of the id column of the input, or what the run calls the row.
        path: where the picture or video is, for people: see `Media.path`.
        task: the name of the task, such as "caption".
        prompt: the question or instruction, its template filled in; "" if the task has none.
        text: the answer, or the most likely label; None for an error.
        finish: why the answer ended, such as "stop" or "length"; None for an error.
        tokens: number of generated tokens; None for an error.
        probabilities: label -> probability, the most likely first; None unless the labels were ranked.
        model: the checkpoint's name.
        revision: of the checkpoint; "" if it has none.
        settings: the options of the call, as JSON values.
        seconds: duration of the answer; None if it was not measured.
        error_type: class name of the error; None for an answer.
        error: the error's message; None for an answer.
        notes: sentences about what was not read of the picture.
        logprobs: for each token {"id", "text", "logprob"} and, if alternatives were requested, "top", a list of the
            same; all numbers are finite. None unless they were requested.
    """

    id: str
    path: str
    task: str
    prompt: str
    text: str | None = None
    finish: str | None = None
    tokens: int | None = None
    probabilities: dict[str, float] | None = None
    model: str
    revision: str
    settings: dict[str, Any]
    seconds: float | None = None
    error_type: str | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields in the order of the columns, without those that are None or empty; an empty answer stays."""
        row = {name: getattr(self, name) for name in COLUMNS}
        return {
            name: value
            for name, value in row.items()
            if value not in (None, "", [], {}) or (name == "text" and value == "")
        }


COLUMNS = tuple(one.name for one in fields(OutputRecord))


def compact_json(value: object) -> str:
    r"""A value as JSON on one line without spaces, which can be encoded as UTF-8.

    Lone surrogates, which stand for the bytes of a file name that are not UTF-8, become the text `\udcff`: six
    characters, with the backslash escaped in JSON. The JSON escape of a lone surrogate would be valid JSON (RFC 8259,
    8.2), but pandas, pyarrow, polars, DuckDB and datasets refuse a whole file that has one.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return LONE_SURROGATE.sub(lambda match: rf"\\u{ord(match[0]):04x}", text)


def escape_surrogates(text: str) -> str:
    r"""The text with `\udcff` in the place of each lone surrogate, as `compact_json` has it.

    Lone surrogates stand for bytes of file names that are not UTF-8.
    """
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class RowScore:
    """How right the answer of a row is, for the report of an evaluation.

    Attributes:
        score: 0 is wrong; 1 is right unless the metric says otherwise.
        references: the right answers.
    """

    score: float
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What the report of a batch run says about the run as a whole.

    Attributes:
        task: the name of the task.
        model: the checkpoint's name.
        revision: of the checkpoint; "" if it has none.
        settings: the options of the calls, as JSON values.
        command: the command line that started the run.
        started: when the run began, with its time zone.
        seconds: duration of the run.
        num_written: answers that this run wrote.
        num_failed: rows that ended in an error in this run.
        num_skipped: rows that were answered before.
        num_tokens: tokens that this run generated.
        title: what the report is of.
        figures: (name, value) of figures about the run as a whole, for people.
    """

    task: str
    model: str
    revision: str
    settings: dict[str, Any]
    command: str
    started: datetime
    seconds: float
    num_written: int
    num_failed: int
    num_skipped: int
    num_tokens: int
    title: str = "Batch run"
    figures: tuple[tuple[str, str], ...] = ()

    @property
    def rows_per_second(self) -> float:
        """Rows that this run finished, with an answer or an error, a second."""
        return (self.num_written + self.num_failed) / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens that this run generated, a second."""
        return self.num_tokens / self.seconds if self.seconds else 0.0
