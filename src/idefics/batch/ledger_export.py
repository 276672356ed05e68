"""`LedgerExport`: the output file of a batch run, which follows its ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from idefics.batch.ledger import Ledger
from idefics.batch.output_file import OutputFile
from idefics.batch.records import OutputRecord
from idefics.batch.run_settings import RunSettings
from idefics.errors import OutputError

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
    """Raises OutputError if an output file exists, is not empty, and was not written from the ledger."""
    is_known = ledger.find_export(str(path.absolute())) is not None
    if not is_known and path.exists() and path.stat().st_size > 0:
        raise OutputError(
            f"{path} exists and was not written from the ledger {ledger.path}: name another file, or replace it "
            "with --overwrite"
        )


class LedgerExport:
    """An output file that follows a ledger: appended where its form allows it, else written at the end of a run.

    Args:
        ledger: has the rows.
        file: the output file.
        overwrite: whether a file that was not written from this ledger may be replaced.

    Raises:
        OutputError: the file cannot be cut back, or was not written from this ledger.
    """

    def __init__(self, ledger: Ledger, file: OutputFile, *, overwrite: bool = False) -> None:
        path = file.path
        self._ledger, self._file, self._key = ledger, file, str(path.absolute())
        self._export_time = time.monotonic()
        mark = ledger.find_export(self._key)
        if not overwrite:
            check_origin(ledger, path)
        is_whole = mark is not None and path.exists() and 0 <= mark[1] <= path.stat().st_size
        if is_whole and self._file.exporter.appendable:
            assert mark is not None
            self._file.truncate_to(mark[1])
            self._last_number = mark[0]
        else:
            self._last_number = -1

    def export_regularly(self) -> None:
        """Appends new rows every two seconds, where that is possible."""
        if time.monotonic() - self._export_time > EXPORT_SECONDS and not self._has_to_rewrite():
            self.export()

    def _has_to_rewrite(self) -> bool:
        """Whether all rows have to be written: the form cannot be appended to, or rows in the file were replaced."""
        mark = self._ledger.find_export(self._key)
        return not self._file.exporter.appendable or self._last_number < 0 or mark is None or mark[1] < 0

    def export(self) -> None:
        """Writes the rows that the file lacks; all of them if it has to be written anew."""
        self._ledger.commit()
        if self._has_to_rewrite():
            size = self._file.rewrite(self._records(0))
        else:
            size = self._file.append(self._records(self._last_number))
        self._ledger.mark_exported(self._key, self._last_number, size)
        self._export_time = time.monotonic()

    def _records(self, number: int) -> Iterator[OutputRecord]:
        """Yields the rows above a number, and remembers the last of them."""
        self._last_number = number
        for row_number, record in records_after(self._ledger, number):
            yield record
            self._last_number = row_number
