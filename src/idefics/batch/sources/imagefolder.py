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
from idefics.batch.sources.settings import SourcePass, SourceSettings
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
class ImageFolder(TableInput):
    """A folder with metadata: its rows are the lines of the metadata, "photos/metadata.jsonl#17".

    Attributes:
        folder: as given.
    """

    folder: str

    @classmethod
    def open(cls, folder: str, metadata: Path, settings: SourceSettings) -> ImageFolder:
        """The folder with the file from `find_metadata`, whose column `file_name` names the pictures."""
        settings = replace(settings, image_column=settings.image_column or "file_name")
        reader = READER_BY_FILE_NAME[metadata.name](metadata)
        return cls(escape_surrogates(str(metadata)), reader, settings, folder)

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each line; at the end counts the pictures without a line as skipped."""
        listed = IncludedFiles()
        for row in TableInput.rows(self, source_pass):
            if row.media is not None and row.media.file is not None:
                listed.add(os.path.realpath(row.media.file))
            yield row
        search = PictureSearch(recursive=True, report_error=lambda folder, message: None, included=listed)
        if num_unlisted := sum(1 for _ in search.find(self.folder, is_pattern=False)):
            source_pass.skipped[UNLISTED] += num_unlisted
