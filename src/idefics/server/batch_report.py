"""`/v1/batches/ID/report`: a batch that has ended as one page of HTML, or as a table."""

from __future__ import annotations

import json
import tempfile
import threading
from asyncio import to_thread
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from idefics.batch.export import CsvExporter, JsonLinesExporter
from idefics.batch.openai_batch import BatchFileLimits, read_batch_lines
from idefics.batch.openai_records import find_picture, to_record
from idefics.batch.records import OutputRecord, RunSummary
from idefics.batch.report import write_page
from idefics.batch.thumbnails import make_thumbnail
from idefics.errors import BadPicture
from idefics.processing.fetch import Fetcher
from idefics.server.batch_folder import BatchFolder, StoredBatch
from idefics.server.batch_lines import batch_file_limits
from idefics.server.batches import find_batch
from idefics.server.errors import APIError
from idefics.server.files import NOT_FOUND_DOCS, BatchFolderDep, OwnerDep, find_file
from idefics.server.routing import ResponseDocs, ServerStateDep

ReportFormat = Literal["html", "csv", "jsonl"]
MEDIA_TYPES: dict[ReportFormat, str] = {
    "html": "text/html",
    "csv": "text/csv",
    "jsonl": "application/jsonl",
}
CHUNK_BYTES = 1 << 16
REPORT_DOCS: ResponseDocs = {
    200: {
        "description": "The report, as a file to store.",
        "content": {media_type: {"schema": {"type": "string"}} for media_type in MEDIA_TYPES.values()},
    }
}

router = APIRouter(tags=["OpenAI"])


class BatchRecords:
    """The rows of a batch, in the order of its input; iterated once.

    Args:
        input_path: the requests.
        limits: of that file.
        output_paths: the files with the answers and the errors.
        model: the name of the model.
        fetcher: decodes the pictures.
    """

    def __init__(
        self,
        input_path: Path,
        limits: BatchFileLimits,
        output_paths: Sequence[Path],
        model: str,
        fetcher: Fetcher,
    ) -> None:
        self._input_path, self._limits, self._output_paths = input_path, limits, output_paths
        self.model, self._fetcher = model, fetcher
        self._body: Any = None  # of the row that was yielded last
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Ends the iteration, from another thread."""
        self._is_stopped.set()

    def __iter__(self) -> Iterator[OutputRecord]:
        positions = _line_positions(self._output_paths)
        files = [path.open("rb") for path in self._output_paths]
        try:
            for line in read_batch_lines(self._input_path, self._limits):
                if self._is_stopped.is_set():
                    return
                number, position = positions[line.custom_id]
                files[number].seek(position)
                self._body = json.loads(line.body)
                yield to_record(line, self._body, json.loads(files[number].readline()), self.model)
        finally:
            for file in files:
                file.close()

    def thumbnail(self, _: OutputRecord) -> bytes | None:
        """The thumbnail of the row that was yielded last; None if it has no picture, or one that cannot be read."""
        url = find_picture(self._body)
        if url is None:
            return None
        try:
            data = self._fetcher.get(url)
        except BadPicture:
            return None
        with self._fetcher.decode_slots:
            return make_thumbnail(data, "", untrusted=True)


def _line_positions(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """The line of each `custom_id`: the index of its file, and where it begins in the file."""
    positions: dict[str, tuple[int, int]] = {}
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            position = 0
            for line in file:
                positions[json.loads(line)["custom_id"]] = (number, position)
                position += len(line)
    return positions


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
    format: ReportFormat = "html",
) -> StreamingResponse:
    """Makes the report of a batch that has ended: a page with thumbnails and charts, or a table; one at a time."""
    batch = find_batch(folder, batch_id, owner)
    if batch.status not in ("completed", "cancelled", "expired"):
        raise APIError(
            400, f"batch {batch.id} is {batch.status}: it has a report once it has ended with answers"
        )
    output_ids = [id for id in (batch.output_file_id, batch.error_file_id) if id is not None]
    if not output_ids:
        raise APIError(400, f"batch {batch.id} was {batch.status} before it began, and has no answers")
    input_file, *outputs = (find_file(folder, id, owner) for id in (batch.input_file_id, *output_ids))
    records = BatchRecords(
        folder.content_path(input_file),
        batch_file_limits(service.settings),
        [folder.content_path(file) for file in outputs],
        service.settings.served_model_name,
        service.vlm.processor.fetcher,
    )
    async with folder.report_lock:
        try:
            file = await to_thread(_write_report, folder, batch, records, format)
        finally:
            records.stop()  # the thread goes on if this task is cancelled
    return StreamingResponse(
        _read_and_close(file),
        media_type=MEDIA_TYPES[format],
        headers={"content-disposition": f'attachment; filename="{batch.id}.{format}"'},
    )


def _write_report(
    folder: BatchFolder, batch: StoredBatch, records: BatchRecords, format: ReportFormat
) -> BinaryIO:
    """Writes a report to a file without a name, which the system deletes once it is closed; open at its beginning."""
    file: BinaryIO = tempfile.TemporaryFile(dir=folder.path)  # noqa: SIM115  # the caller closes it
    try:
        if format == "html":
            summary = _summarize(batch, records)
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


def _summarize(batch: StoredBatch, records: BatchRecords) -> RunSummary:
    """What the page says about the batch as a whole."""
    times = batch.status_times
    started = times.get("in_progress", batch.created_ns // 10**9)
    return RunSummary(
        task=batch.endpoint.rpartition("/")[2],
        model=records.model,
        revision="",
        settings={"endpoint": batch.endpoint, "batch": batch.id},
        command="",
        started=datetime.fromtimestamp(started, UTC),
        seconds=float(times[batch.status] - started),
        num_written=batch.completed,
        num_failed=batch.total - batch.completed,
        num_skipped=0,
        num_tokens=batch.usage.get("output_tokens", 0),
        title="Batch",
    )


def _read_and_close(file: BinaryIO) -> Iterable[bytes]:
    """Yields the content of a file, which is closed then."""
    with file:
        yield from iter(partial(file.read, CHUNK_BYTES), b"")
