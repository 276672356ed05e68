"""Runs a batch: many pictures, one result for each, an answer or an error; writes results as JSONL and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idefics.errors import IdeficsError
from idefics.messages import Picture
from idefics.page.backend import PageBackend, RunningAnswer

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

    As many pictures are in work as keep the engine's batch full. Pictures that are not answered when the batch is
    stopped have no result.
    """
    batch_rows = backend.vlm.engine.config.batch_rows
    remaining_entries = iter(entries)
    pool = ThreadPoolExecutor(batch_rows, thread_name_prefix="idefics-batch")
    num_concurrent_pictures = min(2 * batch_rows, len(entries))
    # Exited from last to first: if this generator is closed early, the answers are stopped before the pool waits.
    with (
        pool,
        backend.track_running_answer(session, tab_name) as running_answer,
        backend.settings.admission_slot(running_answer.stop, num_concurrent_pictures, 0),
    ):
        pending_futures: set[Future[BatchResult | None]] = set()
        while True:
            while len(pending_futures) < 2 * batch_rows and not running_answer.is_stopped:
                entry = next(remaining_entries, None)
                if entry is None:
                    break
                pending_futures.add(
                    pool.submit(_process_entry, backend, session, tab_name, entry, job, running_answer)
                )
            if not pending_futures:
                return
            done, pending_futures = wait(pending_futures, return_when=FIRST_COMPLETED)
            for row in (future.result() for future in done):
                if row is not None:
                    yield row


def _process_entry(
    backend: PageBackend,
    session: str,
    tab_name: str,
    entry: PictureEntry,
    job: BatchJob,
    running_batch: RunningAnswer,
) -> BatchResult | None:
    """Answers one picture; errors become results. None if the batch was stopped before the answer was complete."""
    if running_batch.is_stopped:
        return None
    try:
        data = entry.read()
        backend.check_picture(data, entry.name)
        picture = Picture(data)
        if job.task == "classify":
            ranking = backend.vlm.classify(picture, list(job.labels), **job.options)
            return BatchResult(
                entry.name, ranking.best, labels={one.label: one.probability for one in ranking}
            )
        with backend.track_running_answer(session, tab_name) as running_answer:
            stream = backend.start_task(job.task, picture, job.words, job.options)
            running_answer.attach_stream(stream)
            for _ in stream:
                pass
        answer = stream.answer
        return None if answer.finish == "cancelled" else BatchResult(entry.name, answer.text)
    except IdeficsError as error:
        return BatchResult(entry.name, error=str(error))
    except OSError as error:
        return BatchResult(entry.name, error=f"{entry.name} cannot be read: {error.strerror}")


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
