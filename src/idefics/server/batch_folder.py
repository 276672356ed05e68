"""The folder of `--batches`: clients' files and batches, which survive a restart of the server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from idefics.batch.file_systems import network_file_system
from idefics.batch.output_file import check_writable, replace_file
from idefics.errors import BadSetting, OutputError

LOCK_NAME = "lock"
MIN_FREE_BYTES = 1 << 30  # that an upload leaves free on the disk
DEFAULT_LIFETIME = (
    30 * 24 * 3600
)  # seconds after which a file is deleted; OpenAI's default for files of batches
MAX_REPORTS, MAX_REPORTS_OF_KEY = 4, 2  # that are made at the same time
FINAL_STATUSES = ("completed", "failed", "expired", "cancelled")


@dataclass(slots=True, kw_only=True)
class StoredObject:
    """What a folder keeps as one JSON file.

    Attributes:
        id: its name, which is safe as the name of a file.
        owner: identifies the API key that made it; "" if the server has no keys.
        created_ns: when it was made, in nanoseconds of Unix time.
    """

    id: str
    owner: str
    created_ns: int


@dataclass(slots=True, kw_only=True)
class StoredFile(StoredObject):
    """A file, and what is known about it.

    Attributes:
        filename: as the client calls it.
        purpose: "batch", or "batch_output" of files that the server made.
        num_bytes: its size.
        expires_at: when it is deleted, in seconds of Unix time.
    """

    filename: str
    purpose: str
    num_bytes: int
    expires_at: int


@dataclass(slots=True, kw_only=True)
class StoredBatch(StoredObject):
    """A batch.

    Attributes:
        endpoint, input_file_id, completion_window, metadata: as the client gave them.
        status: as in OpenAI's API.
        status_times: when it had each status first, in seconds of Unix time.
        work_intervals: when its lines were answered: beginning and end, in seconds of Unix time, since each start of
            the server; the last end is right once the batch has ended.
        expires_at: when lines without an answer are given up.
        output_lifetime: seconds that its output files are kept.
        errors: why it failed: the attributes of `LineError`.
        total, completed, failed: numbers of lines: all, those answered with status 200, and those with an error.
        usage: tokens of the answers: "input_tokens", of which "cached_tokens", and "output_tokens"; empty before.
        output_file_id, error_file_id: the files with the answers and with the errors, once they are written.
    """

    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    expires_at: int
    output_lifetime: int = DEFAULT_LIFETIME
    status: str = "validating"
    status_times: dict[str, int] = field(default_factory=dict)
    work_intervals: list[list[float]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.status in FINAL_STATUSES

    def set_status(self, status: str) -> None:
        """Sets the status, and the time of it."""
        self.status = status
        self.status_times[status] = int(time.time())


S = TypeVar("S", StoredFile, StoredBatch)  # the objects of one store


class ObjectStore(Generic[S]):
    """Objects of one kind, each in a JSON file of a folder, and all in memory.

    Args:
        folder: created if it does not exist.
        load: makes an object of the fields in a JSON file.
    """

    def __init__(self, folder: Path, load: Callable[..., S]) -> None:
        self.folder, self._lock = folder, asyncio.Lock()
        folder.mkdir(0o700, exist_ok=True)
        objects = [load(**json.loads(file.read_bytes())) for file in folder.glob("*.json")]
        self.by_id: dict[str, S] = {one.id: one for one in sorted(objects, key=lambda one: one.created_ns)}

    def find(self, id: str, owner: str) -> S | None:
        """The object of an id, if it belongs to the owner."""
        found = self.by_id.get(id)
        return found if found is not None and found.owner == owner else None

    def list(self, owner: str) -> list[S]:
        """The objects of an owner, the newest first."""
        return [one for one in reversed(self.by_id.values()) if one.owner == owner]

    async def save(self, one: S) -> None:
        """Writes an object, new or changed; it is on the disk when this returns. Raises OutputError."""
        path = self.folder / f"{one.id}.json"
        async with self._lock:  # so that the last change is the last that is written
            content = json.dumps(asdict(one)).encode()
            await asyncio.to_thread(_write_bytes, path, content)
        self.by_id[one.id] = one

    def remove(self, one: S) -> None:
        """Deletes an object and its other files, which have its id and another suffix."""
        self.by_id.pop(one.id, None)
        for file in self.folder.glob(f"{one.id}.*"):
            file.unlink(missing_ok=True)


class BatchFolder:
    """The files and batches of all clients. One server at a time may use a folder.

    Attributes:
        files, batches: the objects, which the event loop alone changes.
        report_slots, report_slots_by_owner: held while a report is made, which reads all requests and answers of a
            batch: of all API keys, and of one, so that none holds up the others.

    Raises:
        BadSetting: the folder cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.report_slots = path, asyncio.Semaphore(MAX_REPORTS)
        self.report_slots_by_owner = defaultdict[str, asyncio.Semaphore](
            lambda: asyncio.Semaphore(MAX_REPORTS_OF_KEY)
        )
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
            check_writable(path / LOCK_NAME)
            if kind := network_file_system(path / LOCK_NAME):
                raise OutputError(f"it is on a network file system, {kind}, and ledgers need a local disk")
            self._lock_file = _lock(path / LOCK_NAME)
            self.files = ObjectStore(path / "files", StoredFile)
            self.batches = ObjectStore(path / "batches", StoredBatch)
        except (OSError, OutputError, ValueError, TypeError) as error:
            raise BadSetting(
                f"{path} cannot hold batches ({error}): give another folder with --batches"
            ) from None
        self._delete_unfinished_uploads()
        self.delete_expired()

    def close(self) -> None:
        """Lets another server use the folder."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def content_path(self, file: StoredFile) -> Path:
        """Where the content of a file is."""
        return self.files.folder / f"{file.id}.jsonl"

    def ledger_path(self, batch: StoredBatch) -> Path:
        """Where the answers of a batch are kept until its output files are written."""
        return self.batches.folder / f"{batch.id}.ledger"

    def find_user(self, file: StoredFile) -> StoredBatch | None:
        """A batch that has not ended and reads a file."""
        users = (one for one in self.batches.by_id.values() if one.input_file_id == file.id)
        return next((one for one in users if not one.is_final), None)

    def delete_expired(self) -> None:
        """Deletes files past their time, and batches that ended as long ago, unless they are in use."""
        now = time.time()
        for file in list(self.files.by_id.values()):
            if file.expires_at <= now and self.find_user(file) is None:
                self.files.remove(file)
        for batch in list(self.batches.by_id.values()):
            if batch.is_final and batch.created_ns / 1e9 + DEFAULT_LIFETIME <= now:
                self.batches.remove(batch)

    def _delete_unfinished_uploads(self) -> None:
        """Deletes what a killed server has left of files that were arriving."""
        folder = self.files.folder
        for path in (*folder.glob("*.jsonl"), *folder.glob(".idefics-*.tmp")):
            if path.stem not in self.files.by_id:
                path.unlink(missing_ok=True)

    def has_disk_room(self, num_bytes: int) -> bool:
        """Whether `num_bytes` can be written and leave `MIN_FREE_BYTES`."""
        return shutil.disk_usage(self.path).free >= num_bytes + MIN_FREE_BYTES


def _write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file. Raises OutputError."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    replace_file(path, write)


def _lock(path: Path) -> int | None:
    """Takes the lock on a folder, which the system releases when the process ends; None on Windows.

    Raises:
        OutputError: another server has it.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError("another server uses it") from None
    return descriptor
