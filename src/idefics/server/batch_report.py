"""`/v1/batches/ID/report`: a batch that has ended as one page of HTML, or as a table."""

from __future__ import annotations

import json
import tempfile
import threading
from asyncio import to_thread
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from idefics.batch.export import CsvExporter, JsonLinesExporter
from idefics.batch.openai_batch import BatchFileLimits, read_batch_lines
from idefics.batch.openai_records import find_picture, to_record
from idefics.batch.records import OutputRecord, RunSummary
from idefics.batch.report import make_thumbnail, write_page
from idefics.errors import BadPicture
from idefics.lazy import cached_property
from idefics.processing.fetch import Fetcher
from idefics.server.batch_folder import BatchFolder, StoredBatch
from idefics.server.batch_lines import batch_file_limits
from idefics.server.batches import MAX_BATCHES, find_batch
from idefics.server.errors import APIError
from idefics.server.files import NOT_FOUND_DOCS, BatchFolderDep, OwnerDep, find_file
from idefics.server.request_model import RequestModel
from idefics.server.routing import JSONBodyRoute, ResponseDocs, ServerStateDep

ReportFormat = Literal["html", "csv", "jsonl"]
MEDIA_TYPES: dict[ReportFormat, str] = {
    "html": "text/html",
    "csv": "text/csv",
    "jsonl": "application/jsonl",
}
CHUNK_BYTES = 1 << 16
MAX_REPORT_ROWS = 1_000_000  # of all batches of a report
ID_FIELD, MAX_ID_BYTES = (
    '"custom_id":',
    1 << 13,
)  # where it begins in a line of the output; within so many bytes it ends
ALSO_DESCRIPTION = (
    "Further batches of the report; of requests with the same `custom_id`, the last batch's counts."
)
BatchId = Annotated[str, Field(max_length=64)]
REPORT_DOCS: ResponseDocs = {
    200: {
        "description": "The report, as a file to store.",
        "content": {media_type: {"schema": {"type": "string"}} for media_type in MEDIA_TYPES.values()},
    }
}

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class ReportRequest(RequestModel):
    """What the report has in place of the model's answers: `custom_id` -> text."""

    texts: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchFiles:
    """The files of a batch that has ended.

    Attributes:
        requests: what was asked.
        answers, errors: the lines of its output; None: there are none.
    """

    requests: Path
    answers: Path | None
    errors: Path | None

    @property
    def outputs(self) -> list[Path]:
        """The files that there are of its output."""
        return [path for path in (self.answers, self.errors) if path is not None]


@dataclass(eq=False)
class BatchRecords:
    """The rows of batches, in the order of their input; iterated once. The files of one batch at a time are open.

    Attributes:
        batches: in the order in which they were created; of several lines with one `custom_id`, the last counts.
        limits: of the files.
        model: the name of the model.
        fetcher: decodes the pictures.
        texts: `custom_id` -> what a row has in place of the model's answer.
    """

    batches: Sequence[BatchFiles]
    limits: BatchFileLimits
    model: str
    fetcher: Fetcher
    texts: Mapping[str, str]
    _body: Any = None  # of the row that was yielded last
    _is_stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Ends the iteration, from another thread."""
        self._is_stopped.set()

    @cached_property
    def _path_by_id(self) -> dict[str, Path]:
        """The file with the line that counts, of each `custom_id`."""
        return {id: path for batch in self.batches for path in batch.outputs for id, _ in _line_starts(path)}

    def count_answers(self) -> tuple[int, int, int]:
        """The numbers of rows with an answer, of those with an error, and of corrected answers."""
        files = {batch.answers for batch in self.batches}
        answered = {id for id, path in self._path_by_id.items() if path in files}
        return len(answered), len(self._path_by_id) - len(answered), len(answered & self.texts.keys())

    def __iter__(self) -> Iterator[OutputRecord]:
        for batch in self.batches:
            with ExitStack() as stack:
                files = {path: stack.enter_context(path.open("rb")) for path in batch.outputs}
                starts = {path: dict(_line_starts(path)) for path in batch.outputs}
                for line in read_batch_lines(batch.requests, self.limits):
                    if self._is_stopped.is_set():
                        return
                    path = self._path_by_id[line.custom_id]
                    if path not in files:
                        continue
                    files[path].seek(starts[path][line.custom_id])
                    self._body = json.loads(line.body)
                    record = to_record(line, self._body, json.loads(files[path].readline()), self.model)
                    yield self._correct(record)

    def _correct(self, record: OutputRecord) -> OutputRecord:
        """The row with what somebody wrote in place of the model's answer, which becomes a note."""
        text = self.texts.get(record.id)
        if text is None or record.error_type:
            return record
        return replace(
            record, text=text, notes=[*record.notes, f"corrected; the model answered: {record.text}"]
        )

    def thumbnail(self, _: OutputRecord) -> bytes | None:
        """The thumbnail of the row that was yielded last; None if it has no picture, or one that cannot be read."""
        url = find_picture(self._body)
        if url is None:
            return None
        try:
            data = self.fetcher.get(url)
        except BadPicture:
            return None
        with self.fetcher.decode_slots:
            return make_thumbnail(data, "", untrusted=True)


def _line_starts(path: Path) -> Iterator[tuple[str, int]]:
    """The `custom_id` of each line of an output file, and where the line begins. The answers are not parsed."""
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        start = 0
        for line in file:
            head = line[:MAX_ID_BYTES].decode(errors="ignore")
            yield decoder.raw_decode(head, head.index(ID_FIELD) + len(ID_FIELD))[0], start
            start += len(line)


@router.post(
    "/v1/batches/{batch_id}/report",
    response_class=StreamingResponse,
    responses=REPORT_DOCS | NOT_FOUND_DOCS,
)
async def make_report(
    batch_id: str,
    folder: BatchFolderDep,
    owner: OwnerDep,
    service: ServerStateDep,
    request: ReportRequest | None = None,
    format: ReportFormat = "html",
    also: Annotated[list[BatchId], Query(max_length=MAX_BATCHES, description=ALSO_DESCRIPTION)] = [],  # noqa: B006
) -> StreamingResponse:
    """Makes the report of batches that have ended: a page with thumbnails and charts, or a table."""
    ids = dict.fromkeys([batch_id, *also])
    batches = sorted((find_batch(folder, id, owner) for id in ids), key=lambda batch: batch.created_ns)
    num_rows = sum(batch.total for batch in batches)
    if num_rows > MAX_REPORT_ROWS:
        raise APIError(
            400,
            f"the batches have {num_rows:,} requests, and a report at most {MAX_REPORT_ROWS:,}: name fewer batches",
        )
    records = BatchRecords(
        [_find_files(folder, batch, owner) for batch in batches],
        batch_file_limits(service.settings),
        service.settings.served_model_name,
        service.vlm.processor.fetcher,
        request.texts if request else {},
    )
    async with folder.report_slots_by_owner[owner], folder.report_slots:
        try:
            file = await to_thread(_write_report, folder, batches, records, format)
        finally:
            records.stop()  # the thread goes on if this task is cancelled
    return StreamingResponse(
        _read_and_close(file),
        media_type=MEDIA_TYPES[format],
        headers={"content-disposition": f'attachment; filename="{batch_id}.{format}"'},
    )


def _find_files(folder: BatchFolder, batch: StoredBatch, owner: str) -> BatchFiles:
    """The files of a batch. Raises an `APIError` if it has no answers yet or none at all, or a file was deleted."""
    if batch.status not in ("completed", "cancelled", "expired"):
        raise APIError(
            400, f"batch {batch.id} is {batch.status}: it has a report once it has ended with answers"
        )
    if batch.output_file_id is None and batch.error_file_id is None:
        raise APIError(400, f"batch {batch.id} was {batch.status} before it began, and has no answers")

    def path(id: str | None) -> Path | None:
        return None if id is None else folder.content_path(find_file(folder, id, owner))

    requests = folder.content_path(find_file(folder, batch.input_file_id, owner))
    return BatchFiles(requests, path(batch.output_file_id), path(batch.error_file_id))


def _write_report(
    folder: BatchFolder, batches: Sequence[StoredBatch], records: BatchRecords, format: ReportFormat
) -> BinaryIO:
    """Writes a report to a file without a name, which the system deletes once it is closed; open at its beginning."""
    file: BinaryIO = tempfile.TemporaryFile(dir=folder.path)  # noqa: SIM115  # the caller closes it
    try:
        if format == "html":
            summary = _summarize(batches, records)
            write_page(file, records=records, run=summary, thumbnails=records.thumbnail)
        else:
            exporter = CsvExporter() if format == "csv" else JsonLinesExporter()
            file.write(exporter.header)
            exporter.write(file, records)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _summarize(batches: Sequence[StoredBatch], records: BatchRecords) -> RunSummary:
    """What the page says about the batches as a whole."""
    intervals = sorted(interval for one in batches for interval in one.work_intervals)
    started = intervals[0][0] if intervals else min(one.created_ns / 1e9 for one in batches)
    endpoints = ", ".join(dict.fromkeys(one.endpoint for one in batches))
    num_written, num_failed, num_corrected = records.count_answers()
    return RunSummary(
        task=endpoints.rpartition("/")[2],
        model=records.model,
        revision="",
        settings={"endpoint": endpoints, "batch": ", ".join(one.id for one in batches)},
        command="",
        started=datetime.fromtimestamp(started, UTC),
        seconds=union_seconds(intervals),
        num_written=num_written,
        num_failed=num_failed,
        num_skipped=0,
        num_tokens=sum(one.usage.get("output_tokens", 0) for one in batches),
        title="Batch",
        figures=(("corrected", f"{num_corrected:,}"),) if num_corrected else (),
    )


def union_seconds(intervals: Iterable[Sequence[float]]) -> float:
    """The seconds that lie in at least one of the intervals, which are sorted."""
    seconds, reached = 0.0, 0.0
    for begin, end in intervals:
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


def _read_and_close(file: BinaryIO) -> Iterable[bytes]:
    """Yields the content of a file, which is closed then."""
    with file:
        yield from iter(partial(file.read, CHUNK_BYTES), b"")
