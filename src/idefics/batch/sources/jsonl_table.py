"""JSON Lines (https://jsonlines.org): an object a line. OpenAI's batch files are told apart from tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from idefics.batch.sources.tables import FileTable
from idefics.errors import BadPicture

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
