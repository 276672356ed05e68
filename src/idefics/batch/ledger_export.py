"""`LedgerExport`: the output file of a batch run, which follows its ledger."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.batch.ledger import ExportMark, Ledger
from idefics.batch.output_file import OutputFile
from idefics.batch.records import OutputRecord
from idefics.batch.run_settings import RunSettings
from idefics.errors import OutputError

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

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
