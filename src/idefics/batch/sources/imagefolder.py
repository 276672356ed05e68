"""Folders with a `metadata.jsonl` or `metadata.csv`, as Hugging Face's `imagefolder` reads them.

The column `file_name` holds paths relative to the folder (https://huggingface.co/docs/datasets/image_dataset).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow
from idefics.batch.sources.folders import PictureSearch
from idefics.batch.sources.settings import SingleInput, SourcePass, SourceSettings
from idefics.batch.sources.skipped import UNLISTED, IncludedFiles
from idefics.batch.sources.tables import TableInput
from idefics.batch.sources.text_tables import CsvReader, JsonLinesReader

READER_BY_FILE_NAME: dict[str, type[JsonLinesReader] | type[CsvReader]] = {
    "metadata.jsonl": JsonLinesReader,
    "metadata.csv": CsvReader,
}


def find_metadata(folder: Path) -> Path | None:
    """The file that describes the pictures of a folder, or None."""
    paths = (folder / name for name in READER_BY_FILE_NAME)
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113  # False where it may not be read


@dataclass(frozen=True, slots=True)
class ImageFolder(SingleInput):
    """A folder with metadata: its rows are the lines of the metadata, "photos/metadata.jsonl#17".

    Attributes:
        folder: as given.
        metadata: from `find_metadata`.
    """

    folder: str
    metadata: Path
    settings: SourceSettings

    @property
    def key(self) -> str:
        """The real path of the metadata."""
        return os.path.realpath(self.metadata)

    @property
    def has_columns(self) -> bool:
        """True."""
        return True

    def check(self) -> None:
        """Raises BadSetting if a column is missing."""
        self.table().check()

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each line; at the end counts the pictures without a line as skipped."""
        listed = IncludedFiles()
        for row in self.table().rows(source_pass):
            if row.media is not None and row.media.file is not None:
                listed.add(os.path.realpath(row.media.file))
            yield row
        search = PictureSearch(recursive=True, report_error=lambda folder, message: None, included=listed)
        if num_unlisted := sum(1 for _ in search.find(self.folder, is_pattern=False)):
            source_pass.skipped[UNLISTED] += num_unlisted

    def count(self, source_pass: SourcePass) -> int | None:
        """The number of lines."""
        return self.table().count(source_pass)

    def table(self) -> TableInput:
        """The metadata as a table, whose pictures are in the column `file_name`."""
        reader = READER_BY_FILE_NAME[self.metadata.name](self.metadata)
        settings = replace(self.settings, image_column=self.settings.image_column or "file_name")
        return TableInput(escape_surrogates(str(self.metadata)), reader, settings)
