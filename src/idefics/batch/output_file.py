"""The output file of a batch run, which a full disk or a killed process leaves whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from idefics.batch.export import Exporter
from idefics.batch.file_replacement import report_os_errors, sync_folder, write_temporary
from idefics.batch.records import OutputRecord
from idefics.errors import OutputError, format_bytes

MIN_FREE_BYTES, FEW_FREE_BYTES = 10**6, 100 * 10**6


class OutputFile:
    """An output file and the form in which records are written to it.

    All methods return once the content is on the disk, and raise OutputError if it cannot be written.

    Args:
        path: where the file is, or will be.
        exporter: writes the records.
    """

    def __init__(self, path: Path, exporter: Exporter) -> None:
        self.path, self.exporter = path, exporter

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
