"""The output file of a batch run, which follows its ledger; a full disk or a killed process leaves it whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from idefics.batch.export import Exporter
from idefics.batch.file_replacement import report_os_errors, sync_folder, write_temporary
from idefics.batch.ledger import ExportMark, Ledger
from idefics.batch.records import OutputRecord
from idefics.batch.run_settings import RunSettings
from idefics.errors import OutputError, format_bytes

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


MIN_FREE_BYTES, FEW_FREE_BYTES = 10**6, 100 * 10**6


@dataclass(frozen=True, slots=True)
class OutputFile:
    """An output file and the form in which records are written to it.

    All methods return once the content is on the disk, and raise OutputError if it cannot be written.

    Attributes:
        path: where the file is, or will be.
        exporter: writes the records.
    """

    path: Path
    exporter: Exporter

    def truncate_to(self, size: int) -> None:
        """Cuts the file back to its first `size` bytes; creates it if it does not exist.

        Raises:
            OutputError: it is shorter.
        """
        with report_os_errors(self.path), self.path.open("ab") as file:
            if file.tell() < size:
                raise OutputError(
                    f"{self.path} has {file.tell():,} bytes, and {size:,} were written: it was changed since; "
                    "move it away, and write it again from the ledger"
                )
            file.truncate(size)
            os.fsync(file.fileno())

    def append(self, records: Iterable[OutputRecord]) -> int:
        """Adds records, and before them the header if the file is new or empty; only if the exporter is appendable.

        If it fails, the file is as it was before.

        Returns:
            The size of the file in bytes.
        """
        with report_os_errors(self.path):
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with report_os_errors(self.path), self.path.open("ab") as file:
                    if not size:
                        file.write(self.exporter.header)
                    self.exporter.write(file, records)
                    file.flush()
                    os.fsync(file.fileno())
                    return file.tell()
            except BaseException:
                if self.path.exists():
                    os.truncate(self.path, size)
                raise

    def rewrite(self, records: Iterable[OutputRecord]) -> int:
        """Replaces the file by one of these records alone; if it fails, the file is as it was before.

        Returns:
            The size of the file in bytes.
        """

        def write(file: BinaryIO) -> None:
            file.write(self.exporter.header)
            self.exporter.write(file, records)

        return replace_file(self.path, write)


def replace_file(path: Path, write: Callable[[BinaryIO], None]) -> int:
    """Writes a file under a temporary name in its folder, and renames it once its content is on the disk.

    Args:
        path: of the file, which may exist. A link stays: the file that it leads to is replaced.
        write: writes the content to a file.

    Returns:
        The size of the file in bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    with report_os_errors(path):
        target = Path(os.path.realpath(path))
        temporary = write_temporary(path, target, write)
        try:
            size = temporary.stat().st_size
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(target.parent)
    return size


def check_writable(path: Path) -> str:
    """Checks before a run, by writing a byte to the folder, that an output file can be written.

    Returns:
        A sentence about a disk that has less than 100 MB free; "" if it has more.

    Raises:
        OutputError: the path is a folder, its folder is missing, one of them cannot be written, or less than 1 MB is
            free.
    """
    folder = path.parent
    with report_os_errors(path):
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder: give the name of a file in it")
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: there is no folder {folder}: create it first")
        if path.exists():
            path.open("ab").close()
        else:
            path.touch()
            path.unlink()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise OutputError(f"cannot write {path}: only {free:,} bytes are free: free at least 100 MB")
    if free < FEW_FREE_BYTES:
        return f"only {format_bytes(free)} are free for {path}: a run that fills the disk stops, and loses nothing"
    return ""


EXPORT_SECONDS = 2.0


def records_after(ledger: Ledger, number: int, run: int | None = None) -> Iterator[tuple[int, OutputRecord]]:
    """Yields the rows of a ledger above a number as output, with their numbers; of one run, or of all."""
    settings_by_run = {one: RunSettings(**settings) for one, settings in ledger.runs().items()}
    for row, answer in ledger.rows_after(number):
        if run in (None, row.run):
            yield (
                row.number,
                settings_by_run[row.run].record(row.id or row.name, row.path, row.prompt, answer),
            )


def check_origin(ledger: Ledger, path: Path) -> None:
    """Checks that an output file may be cut back or replaced.

    Raises:
        OutputError: it is not empty, and was not written from the ledger, or was changed since.
    """
    if not path.exists() or not path.stat().st_size:
        return
    mark = ledger.find_export(str(path.absolute()))
    if mark is None:
        raise OutputError(
            f"{path} exists and was not written from the ledger {ledger.path}: name another file, or replace it "
            "with --overwrite"
        )
    if mark.size >= 0 and hash_beginning(path, mark.size).digest() != mark.digest:
        raise OutputError(
            f"{path} was changed since it was written: move it away, and run again; the ledger {ledger.path} has all "
            "rows, and writes them anew"
        )


def hash_beginning(path: Path, size: int) -> Hash:
    """SHA-256 of the first bytes of a file; of all of it if it is shorter."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, 2**20))):
            digest.update(piece)
            size -= len(piece)
    return digest


class LedgerExport:
    """An output file that follows a ledger: appended where its form allows it, else written at the end of a run.

    Args:
        ledger: has the rows.
        file: the output file.
        overwrite: whether a file may be replaced that was not written from this ledger, or was changed since.

    Raises:
        OutputError: see `check_origin`.
    """

    def __init__(self, ledger: Ledger, file: OutputFile, *, overwrite: bool = False) -> None:
        path = file.path
        self._ledger, self._file, self._key = ledger, file, str(path.absolute())
        self._export_time = time.monotonic()
        self._last_number, self._digest = -1, hashlib.sha256()
        if not overwrite:
            check_origin(ledger, path)
            mark = ledger.find_export(self._key)
            is_complete = mark is not None and 0 < mark.size <= self._current_size()
            if mark is not None and is_complete and file.exporter.appendable:
                file.truncate_to(mark.size)
                self._last_number, self._digest = mark.last_number, hash_beginning(path, mark.size)
        self._size = self._current_size()

    def _current_size(self) -> int:
        """The bytes of the file; 0 if it does not exist."""
        return self._file.path.stat().st_size if self._file.path.exists() else 0

    def export_regularly(self) -> None:
        """Appends new rows every two seconds, where that is possible."""
        if time.monotonic() - self._export_time > EXPORT_SECONDS and not self._has_to_rewrite():
            self.export()

    def _has_to_rewrite(self) -> bool:
        """Whether all rows have to be written: the form cannot be appended to, or rows in the file were replaced."""
        mark = self._ledger.find_export(self._key)
        is_complete = mark is not None and mark.size >= 0 and self._last_number >= 0
        return not self._file.exporter.appendable or not is_complete or not self._current_size()

    def export(self) -> None:
        """Writes the rows that the file lacks; all of them if it has to be written anew.

        Raises:
            OutputError: it cannot be written, or another program has changed it during the run.
        """
        self._ledger.commit()
        if self._current_size() not in (0, self._size):
            raise OutputError(
                f"{self._file.path} was changed by another program during the run: move it away, and run again; the "
                f"ledger {self._ledger.path} has all rows, and writes them anew"
            )
        if self._has_to_rewrite():
            self._ledger.mark_exported(
                self._key, ExportMark(0, -1, b"")
            )  # if it ends between here and the next mark
            size = self._file.rewrite(self._records(0))
            self._digest = hash_beginning(self._file.path, size)
        else:
            old_size, size = self._size, self._file.append(self._records(self._last_number))
            with self._file.path.open("rb") as file:
                file.seek(old_size)
                self._digest.update(file.read(size - old_size))
        self._size = size
        self._ledger.mark_exported(self._key, ExportMark(self._last_number, size, self._digest.digest()))
        self._export_time = time.monotonic()

    def _records(self, number: int) -> Iterator[OutputRecord]:
        """Yields the rows above a number, and remembers the last of them."""
        self._last_number = number
        for row_number, record in records_after(self._ledger, number):
            yield record
            self._last_number = row_number
