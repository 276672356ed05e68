"""Tables as text: CSV (RFC 4180), and JSON Lines (https://jsonlines.org) that are no batch files of OpenAI's API."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from idefics.batch.sources.settings import MAX_MEDIA_BYTES
from idefics.batch.sources.tables import FileTable
from idefics.errors import BadPicture

SEPARATORS = ",;\t"  # the one that occurs most often in the first line
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
                header = file.readline()
                file.seek(0)
                reader = csv.reader(file, delimiter=max(SEPARATORS, key=header.count), strict=True)
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


NUM_LINES_FOR_COLUMNS = 20  # whose keys are the columns
OPENAI_BATCH_KEYS = {"custom_id", "method", "url", "body"}  # of each line of a batch input file


def is_openai_batch(path: str | Path) -> bool:
    """Whether a file is a batch input file of OpenAI's API, by its suffix and its first line that is not blank.

    False if it cannot be read.
    """
    if Path(path).suffix.lower() != ".jsonl":
        return False
    reader = JsonLinesReader(Path(path))
    try:
        first = next(reader.records(), "")
    except BadPicture:
        return False
    return isinstance(first, dict) and first.keys() >= OPENAI_BATCH_KEYS


class JsonLinesReader(FileTable):
    """Reads a JSON Lines file; blank lines are left out."""

    def read_columns(self) -> list[str]:
        """The keys of the first lines, in their order."""
        first = islice(self.records(), NUM_LINES_FOR_COLUMNS)
        return list(dict.fromkeys(key for record in first if isinstance(record, dict) for key in record))

    def records(self) -> Iterator[dict[str, Any] | str]:
        """Yields the objects; instead of a line that is none, the reason."""
        for line in self._lines():
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield "is not UTF-8: save the file as UTF-8"
                continue
            except json.JSONDecodeError as error:
                yield f"is not valid JSON: {error.msg} at character {error.pos + 1}"
                continue
            except (ValueError, RecursionError) as error:
                yield f"is not valid JSON: {error}"
                continue
            yield record if isinstance(record, dict) else 'is no JSON object: a line reads {"image": ...}'

    def count(self) -> int:
        """The number of lines that are not blank."""
        return sum(1 for _ in self._lines())

    def _lines(self) -> Iterator[bytes]:
        """Yields the lines that are not blank; raises BadPicture if the file cannot be read."""
        try:
            with self.path.open("rb") as file:
                yield from (line for line in file if not line.isspace())
        except OSError as error:
            raise BadPicture(f"{self.path} cannot be read: {error.strerror or error}") from None
