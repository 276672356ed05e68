"""CSV (RFC 4180) with a header; the separator is a comma, a semicolon or a tab, the most frequent in the header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from typing import TextIO

from idefics.batch.sources.media import MAX_MEDIA_BYTES
from idefics.batch.sources.tables import FileTable
from idefics.errors import BadPicture

SEPARATORS = ",;\t"
MAX_FIELD_CHARACTERS = 2 * MAX_MEDIA_BYTES  # base64 takes 4/3 of a character a byte
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how `surrogateescape` reads other bytes (PEP 383)


class CsvReader(FileTable):
    """Reads a CSV file; blank lines are left out."""

    def read_columns(self) -> list[str]:
        """The header."""
        return self._header(self._rows())

    def records(self) -> Iterator[dict[str, str] | str]:
        """Yields the rows by column; instead of a row that does not fit the header, the reason."""
        rows = self._rows()
        header = self._header(rows)
        for row in rows:
            if isinstance(row, str):
                yield row
            elif len(row) != len(header):
                yield f"has {len(row)} values, but the header has {len(header)}: put texts with commas in quotes"
            else:
                yield dict(zip(header, row, strict=True))

    def _header(self, rows: Iterator[list[str] | str]) -> list[str]:
        """The first of the rows, empty if there is none. Raises BadPicture if it cannot be read."""
        header = next(rows, [])
        if isinstance(header, str):
            raise BadPicture(f"{self.path}: the header {header}")
        return header

    def count(self) -> int:
        """The number of rows below the header, by a pass over the file."""
        return sum(1 for _ in islice(self._rows(), 1, None))

    def _rows(self) -> Iterator[list[str] | str]:
        """Yields the header and the rows; instead of one that cannot be read, the reason."""
        # The limit is the module's own, for the whole process; it is never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
        try:
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                reader = csv.reader(file, delimiter=_find_separator(file), strict=True)
                while True:
                    try:
                        row = next(reader)
                    except StopIteration:
                        return
                    except csv.Error as error:
                        reason = "a quote is not closed" if "unexpected end" in str(error) else error
                        yield f"is not valid CSV: {reason}"
                        continue
                    if any(map(NOT_UTF8.search, row)):
                        yield "is not text in UTF-8: save the table as UTF-8"
                    elif row:
                        yield row
        except OSError as error:
            raise BadPicture(f"{self.path} cannot be read: {error.strerror or error}") from None


def _find_separator(file: TextIO) -> str:
    """The separator that occurs most often in the first line; the file is at its beginning again."""
    header = file.readline()
    file.seek(0)
    return max(SEPARATORS, key=header.count)
