"""A batch: many pictures, a row for each, however it went."""

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
from idefics.ui.desk import Desk, Running

if TYPE_CHECKING:
    from idefics.ui.archive import Entry

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute what begins so


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one picture. `error` says why there is no answer; `labels` are those of `classify`."""

    image: str
    text: str = ""
    error: str = ""
    labels: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is done to each picture: a task, its words or labels, and the keywords of the call."""

    task: str
    words: str = ""
    labels: Sequence[str] = ()
    options: Mapping[str, Any]


def rows(desk: Desk, session: str, place: str, entries: Sequence[Entry], job: Job) -> Iterator[Row]:
    """A row for each picture, as they are done; as many side by side as the engine answers at once.

    What has not been answered when it is stopped has no row.
    """
    side_by_side = desk.vlm.engine.config.batch_rows
    left = iter(entries)
    pool = ThreadPoolExecutor(side_by_side, thread_name_prefix="idefics-batch")
    pictures = min(2 * side_by_side, len(entries))  # at once
    # From right to left, who leaves early stops what runs, and waits for nothing.
    with pool, desk.running(session, place) as running, desk.settings.admit(running.stop, pictures, 0):
        doing: set[Future[Row | None]] = set()
        while True:
            while len(doing) < 2 * side_by_side and not running.stopped:
                entry = next(left, None)
                if entry is None:
                    break
                doing.add(pool.submit(_row, desk, session, place, entry, job, running))
            if not doing:
                return
            done, doing = wait(doing, return_when=FIRST_COMPLETED)
            for row in (future.result() for future in done):
                if row is not None:
                    yield row


def _row(desk: Desk, session: str, place: str, entry: Entry, job: Job, whole: Running) -> Row | None:
    if whole.stopped:
        return None
    try:
        data = entry.read()
        desk.check(data, entry.name)
        picture = Picture(data)
        if job.task == "classify":
            ranking = desk.vlm.classify(picture, list(job.labels), **job.options)
            return Row(entry.name, ranking.best, labels={one.label: one.probability for one in ranking})
        with desk.running(session, place) as running:
            stream = desk.stream(job.task, picture, job.words, job.options)
            running.begin(stream)
            for _ in stream:
                pass
        answer = stream.answer
        return None if answer.finish == "cancelled" else Row(entry.name, answer.text)
    except IdeficsError as error:
        return Row(entry.name, error=str(error))
    except OSError as error:
        return Row(entry.name, error=f"{entry.name} cannot be read: {error.strerror}")


def as_jsonl(found: Sequence[Row]) -> bytes:
    """One JSON object a line: image, text, and error or labels where there are any."""
    lines = []
    for row in found:
        object: dict[str, Any] = {"image": row.image}
        object |= {"error": row.error} if row.error else {"text": row.text}
        object |= {"labels": row.labels} if row.labels else {}
        lines.append(json.dumps(object, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def as_csv(found: Sequence[Row]) -> bytes:
    """A table, with a column for each label. An apostrophe stands before what a spreadsheet takes for a formula."""
    labels = list(dict.fromkeys(label for row in found for label in row.labels or ()))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(map(_plain, ["image", "text", "error", *labels]))
    for row in found:
        numbers = [f"{row.labels[label]:.6f}" if row.labels else "" for label in labels]
        writer.writerow([*map(_plain, [row.image, row.text, row.error]), *numbers])
    return b"\xef\xbb\xbf" + table.getvalue().encode()  # the mark tells spreadsheets that it is UTF-8


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
