"""Runs a batch: many pictures, one result for each, an answer or an error; writes results as JSONL and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idefics.errors import BadPicture, IdeficsError
from idefics.messages import Picture, Ranking
from idefics.page.backend import PageBackend

if TYPE_CHECKING:
    from idefics.page.picture_sources import PictureEntry

FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins so


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of one picture.

    Attributes:
        image: the picture's name.
        text: the answer, or the best label.
        error: why there is no answer; "" where there is one.
        labels: label -> probability; None for tasks other than "classify".
    """

    image: str
    text: str = ""
    error: str = ""
    labels: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What is done to each picture: a task, its text or labels, and the options of the call."""

    task: str
    words: str = ""
    labels: Sequence[str] = ()
    options: Mapping[str, Any]


def run_batch(
    backend: PageBackend, session: str, tab_name: str, entries: Sequence[PictureEntry], job: BatchJob
) -> Iterator[BatchResult]:
    """Yields a result for each picture, in the order in which they are finished.

    Pictures that are not answered when the batch is stopped have no result.
    """
    batch_rows = backend.vlm.engine.config.batch_rows
    num_concurrent_pictures = min(2 * batch_rows, len(entries))
    options: dict[str, Any] = {**job.options} | ({"labels": job.labels} if job.labels else {})
    rows = (_read_entry(backend, entry) for entry in entries)
    # Exited from last to first: the rows in hand are cancelled before the slot is given back.
    with (
        backend.track_running_answer(session, tab_name) as running_answer,
        backend.settings.admission_slot(running_answer.stop, num_concurrent_pictures, 0),
        backend.vlm.map(
            rows, job.task, prompt=job.words or None, ordered=False, on_error="return", **options
        ) as results,
    ):
        running_answer.attach_stream(results)
        for done in results:
            name, result = entries[done.index].name, done.result
            if isinstance(result, IdeficsError):
                yield BatchResult(name, error=str(result))
            elif isinstance(result, Ranking):
                yield BatchResult(name, result.best, labels={one.label: one.probability for one in result})
            elif result.finish != "cancelled":
                yield BatchResult(name, result.text)


def _read_entry(backend: PageBackend, entry: PictureEntry) -> Picture | IdeficsError:
    """The picture of an entry, or why it cannot be read."""
    try:
        data = entry.read()
        backend.check_picture(data, entry.name)
        return Picture(data)
    except IdeficsError as error:
        return error
    except OSError as error:
        return BadPicture(f"{entry.name} cannot be read: {error.strerror}")


def to_jsonl(results: Sequence[BatchResult]) -> bytes:
    """One JSON object per line: "image", "text" or "error", and "labels" for "classify"."""
    lines = []
    for row in results:
        record: dict[str, Any] = {"image": row.image}
        record |= {"error": row.error} if row.error else {"text": row.text}
        record |= {"labels": row.labels} if row.labels else {}
        lines.append(json.dumps(record, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def to_csv(results: Sequence[BatchResult]) -> bytes:
    """A CSV table with a column for each label. Cells that look like a formula are prefixed with an apostrophe."""
    labels = list(dict.fromkeys(label for row in results for label in row.labels or ()))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(map(_escape_formula, ["image", "text", "error", *labels]))
    for row in results:
        numbers = [f"{row.labels[label]:.6f}" if row.labels else "" for label in labels]
        writer.writerow([*map(_escape_formula, [row.image, row.text, row.error]), *numbers])
    byte_order_mark = b"\xef\xbb\xbf"  # tells spreadsheets that the file is UTF-8
    return byte_order_mark + table.getvalue().encode()


def _escape_formula(text: str) -> str:
    """Prefixes a cell with an apostrophe if a spreadsheet would run it as a formula."""
    return f"'{text}" if text.startswith(FORMULA_PREFIXES) else text
