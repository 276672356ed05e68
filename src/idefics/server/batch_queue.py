"""Carries out batches: checks their files, has their lines answered, and writes their output files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fastapi import FastAPI

from idefics.batch.ledger import Ledger
from idefics.batch.openai_batch import (
    MAX_LINES,
    OPENAI_BATCH_TASK,
    BatchFileLimits,
    BatchLine,
    LineError,
    check_batch_file,
    read_batch_lines,
    unanswered_line,
)
from idefics.batch.output_file import replace_file
from idefics.batch.run_settings import RunSettings
from idefics.errors import IdeficsError, OutputError
from idefics.server.batch_folder import BatchFolder, StoredBatch, StoredFile
from idefics.server.batch_lines import BatchLineRunner, InProcessResponse, LineSlots, batch_file_limits
from idefics.server.server_state import ServerState

MAX_RUNNING_BATCHES = 8  # further ones wait for these to end
RETRY_SECONDS = 60.0  # until a batch goes on whose files could not be written
UNANSWERED = {
    "expired": ("batch_expired", "the batch expired before this request was executed"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was executed"),
}  # final status of a batch -> code and message of its lines without an answer
RUN_SETTINGS = RunSettings(task=OPENAI_BATCH_TASK, model="", revision="", fingerprint="").to_json()

log = logging.getLogger("idefics.server")


class BatchQueue:
    """The batches that have not ended, each carried out by a task.

    Args:
        app: its routes answer the lines.
        service: the state of the app.
        folder: has the files and batches.
    """

    def __init__(self, app: FastAPI, service: ServerState, folder: BatchFolder) -> None:
        self._app, self._service, self._folder = app, service, folder
        self._limits = batch_file_limits(service.settings, MAX_LINES)
        max_lines = service.vlm.engine.config.batch_rows // 2
        self._slots = LineSlots(service.admission, max_lines)
        self._turns = asyncio.Semaphore(MAX_RUNNING_BATCHES)
        self._task_by_id: dict[str, asyncio.Task[None]] = {}
        self._waiting_ids: set[str] = set()  # of batches that wait for others to end
        self._closing = asyncio.Event()

    @property
    def _is_closing(self) -> bool:
        """Whether the server shuts down, so that batches go on when it is started again."""
        return self._closing.is_set() or self._service.admission.is_closing

    def start(self) -> None:
        """Goes on with all batches that had not ended when the server was stopped."""
        for batch in self._folder.batches.by_id.values():
            if not batch.is_final:
                self.add(batch)

    def add(self, batch: StoredBatch) -> None:
        """Begins a batch, or goes on with it."""
        task = asyncio.create_task(self._carry_out(batch))
        self._task_by_id[batch.id] = task
        task.add_done_callback(lambda _: self._task_by_id.pop(batch.id))

    async def cancel(self, batch: StoredBatch) -> None:
        """Ends a batch once its lines in hand are answered; at once if it has not begun."""
        batch.set_status("cancelling")
        if batch.id in self._waiting_ids and not batch.total:
            self._waiting_ids.remove(batch.id)
            self._task_by_id[batch.id].cancel()
            batch.set_status("cancelled")
        await self._folder.batches.save(batch)

    async def close(self) -> None:
        """Ends all tasks; lines in hand have the time of `--drain`. The batches go on when the server is started."""
        self._closing.set()
        tasks = list(self._task_by_id.values())
        if tasks:
            await asyncio.wait(tasks, timeout=self._service.settings.drain)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _should_stop(self, batch: StoredBatch) -> bool:
        """Whether no further line of a batch is to begin."""
        return self._is_closing or batch.status == "cancelling" or time.time() >= batch.expires_at

    async def _carry_out(self, batch: StoredBatch) -> None:
        """Carries out a batch to its end, unless the server shuts down. Where the disk is full, tries again later."""
        self._waiting_ids.add(batch.id)
        async with self._turns:
            self._waiting_ids.discard(batch.id)
            while not self._is_closing:
                try:
                    await self._advance(batch)
                    return
                except OutputError as error:
                    log.error("batch %s waits %g s: %s", batch.id, RETRY_SECONDS, error)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), RETRY_SECONDS)
                except IdeficsError as error:
                    await self._fail(batch, LineError(code="invalid_file", message=str(error)))
                    return

    async def _advance(self, batch: StoredBatch) -> None:
        """Does what is left of a batch. Raises OutputError if a file cannot be used; nothing is lost then."""
        input_file = self._folder.files.by_id.get(batch.input_file_id)
        if input_file is None or not (path := self._folder.content_path(input_file)).exists():
            message = "the input file is missing: upload it again, and make another batch"
            await self._fail(batch, LineError(code="file_not_found", message=message, param="input_file_id"))
            return
        if batch.status == "validating":
            check = await asyncio.to_thread(check_batch_file, path, self._limits, batch.endpoint)
            if check.errors:
                await self._fail(batch, *check.errors)
                return
            batch.total = check.num_lines
            if batch.status == "validating":  # it may have been cancelled since
                await self._set_status(batch, "in_progress")
        if batch.status in ("in_progress", "cancelling") and batch.total:
            await self._answer_lines(batch, path)
        if self._is_closing:
            return
        await self._write_outputs(batch, path)

    async def _answer_lines(self, batch: StoredBatch, path: Path) -> None:
        """Answers the lines that have no answer yet."""

        def count(_: BatchLine, response: InProcessResponse) -> None:
            batch.completed += not response.is_error
            batch.failed += response.is_error

        ledger_path = self._folder.ledger_path(batch)
        _begin_work(batch, ledger_path)
        await self._folder.batches.save(batch)
        try:
            with await asyncio.to_thread(Ledger, ledger_path) as ledger:
                run = ledger.run_number(RUN_SETTINGS)
                counts = ledger.count_rows()
                batch.completed, batch.failed = counts[0][1:] if counts else (0, 0)
                should_stop = partial(self._should_stop, batch)
                await BatchLineRunner(
                    self._app, self._slots, ledger, run, path, self._limits, count, should_stop
                ).run()
        finally:
            batch.work_intervals[-1][1] = time.time()

    async def _write_outputs(self, batch: StoredBatch, path: Path) -> None:
        """Writes the output files of a batch, and ends it."""
        num_unanswered = batch.total - batch.completed - batch.failed
        final_status = "completed"
        if batch.status == "cancelling":
            final_status = "cancelled"
        elif num_unanswered:
            final_status = "expired"
        else:
            await self._set_status(batch, "finalizing")
        ledger_path = self._folder.ledger_path(batch)
        if batch.completed:
            usage = Counter[str]()
            write = partial(_write_answers, ledger_path, usage)
            batch.output_file_id = await self._add_file(batch, "output", write)
            batch.usage = dict(usage)
        if batch.failed or num_unanswered:
            write = partial(_write_errors, ledger_path, path, self._limits, final_status)
            batch.error_file_id = await self._add_file(batch, "error", write)
        await self._set_status(batch, final_status)
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                ledger_path.with_name(ledger_path.name + suffix).unlink()

    async def _add_file(self, batch: StoredBatch, kind: str, write: Callable[[BinaryIO], None]) -> str:
        """Writes an output file, whose id follows from that of its batch: writing it again replaces it."""
        digest = hashlib.sha256(f"{batch.id} {kind}".encode()).hexdigest()[:32]
        file = StoredFile(
            id=f"file-{digest}",
            owner=batch.owner,
            created_ns=time.time_ns(),
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            num_bytes=0,
            expires_at=int(time.time()) + batch.output_lifetime,
        )
        file.num_bytes = await asyncio.to_thread(replace_file, self._folder.content_path(file), write)
        await self._folder.files.save(file)
        return file.id

    async def _fail(self, batch: StoredBatch, *errors: LineError) -> None:
        """Ends a batch with errors about its file."""
        batch.errors = [asdict(error) for error in errors]
        await self._set_status(batch, "failed")

    async def _set_status(self, batch: StoredBatch, status: str) -> None:
        batch.set_status(status)
        await self._folder.batches.save(batch)


def _begin_work(batch: StoredBatch, ledger_path: Path) -> None:
    """Notes that lines are answered from now on; before, they were until the ledger was written last."""
    paths = (ledger_path, ledger_path.with_name(f"{ledger_path.name}-wal"))
    writes = [path.stat().st_mtime for path in paths if path.exists()]
    if batch.work_intervals:
        begin, end = batch.work_intervals[-1]
        batch.work_intervals[-1] = [begin, max([end, *writes])]
    now = time.time()
    batch.work_intervals.append([now, now])


def _write_answers(ledger_path: Path, usage: Counter[str], file: BinaryIO) -> None:
    """Writes the lines of a ledger that were answered with status 200, and adds their tokens to `usage`."""
    with Ledger(ledger_path, read_only=True) as ledger:
        for _, answer in ledger.rows_after(0):
            if "error_type" not in answer:
                file.write(f"{answer['text']}\n".encode())
                added = json.loads(answer["text"])["response"]["body"]["usage"]
                # The fields have other names in `/v1/responses` than in the other routes.
                read, written = ("input", "output") if "input_tokens" in added else ("prompt", "completion")
                usage["input_tokens"] += added[f"{read}_tokens"]
                usage["cached_tokens"] += added[f"{read}_tokens_details"]["cached_tokens"]
                usage["output_tokens"] += added[f"{written}_tokens"]


def _write_errors(
    ledger_path: Path, input_path: Path, limits: BatchFileLimits, final_status: str, file: BinaryIO
) -> None:
    """Writes the lines of a ledger that were answered with an error, and those of the input without an answer."""
    with Ledger(ledger_path, read_only=True) as ledger:
        for _, answer in ledger.rows_after(0):
            if "error_type" in answer:
                file.write(f"{answer['text']}\n".encode())
        if final_status not in UNANSWERED:
            return
        (run,) = ledger.runs()
        for line in read_batch_lines(input_path, limits):
            if ledger.find_row(run, line.custom_id) is None:
                file.write(f"{unanswered_line(line.custom_id, *UNANSWERED[final_status])}\n".encode())
