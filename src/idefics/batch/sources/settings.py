"""`SourceSettings`, how inputs are read, and what all kinds of inputs share: `SingleInput` and `SourcePass`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.skipped import DUPLICATE, IncludedFiles
from idefics.errors import BadPicture
from idefics.processing.fetch import Fetcher
from idefics.validation import validate_range


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """How inputs are read.

    Attributes:
        image_column: the column that holds the picture; None: the one that a Parquet file or data set declares, or the
            first of `IMAGE_COLUMNS` that there is.
        id_column: the column whose value is the row's id; None: rows have no id.
        recursive: whether subfolders of folders are searched.
        fetcher: fetches URLs.
        pdf_dpi: resolution of the pages of documents, in pixels per inch, 36 to 600.
    """

    image_column: str | None = None
    id_column: str | None = None
    recursive: bool = True
    fetcher: Fetcher = field(default_factory=Fetcher)
    pdf_dpi: int = 144

    def __post_init__(self) -> None:
        validate_range("pdf_dpi", self.pdf_dpi, 36, 600)


@dataclass(slots=True)
class SourcePass:
    """One iteration over an input: which files it has had, and what it left out, by reason."""

    included: IncludedFiles = field(default_factory=IncludedFiles)
    skipped: Counter[str] = field(default_factory=Counter)

    def is_new(self, single: SingleInput) -> bool:
        """Whether an input has not been named before; counts it as skipped if it has."""
        key = single.key
        if key is None or self.included.add(key):
            return True
        self.skipped[DUPLICATE] += 1
        return False


class SingleInput:
    """Base of the inputs: a file, a folder, an archive, a table, ..."""

    @property
    def key(self) -> str | None:
        """What makes it the same as another input: its real path, or its URL; None if it is a folder or a pattern."""
        return None

    @property
    def has_columns(self) -> bool:
        """Whether its rows may have columns: False."""
        return False

    def check(self) -> None:
        """Raises BadPicture, BadSetting or MissingExtra if nothing of the input can be read; broken content is none.

        Does nothing: what is wrong with a file is a row with an error.
        """

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields the rows; what cannot be read is a row with an error."""
        raise NotImplementedError

    def count(self, source_pass: SourcePass) -> int | None:
        """The number of rows; None if it is not known without reading all of the input."""
        return None


@dataclass(frozen=True, slots=True)
class FileInput(SingleInput):
    """An input that is a file.

    Attributes:
        name: its path as given, in UTF-8.
    """

    name: str
    path: Path
    settings: SourceSettings

    @property
    def key(self) -> str:
        """The real path."""
        return os.path.realpath(self.path)


def error_row(name: str, error: object) -> BatchRow:
    """A row that cannot be answered."""
    return BatchRow(name=escape_surrogates(name), media=None, error=escape_surrogates(str(error)))


def column_row(name: str, media: Media, columns: Mapping[str, Any], settings: SourceSettings) -> BatchRow:
    """A row with columns, and the id that is among them.

    Returns:
        A row with an error if the id column has no value.
    """
    if settings.id_column is None:
        return BatchRow(name=name, media=media, columns=columns)
    value = columns.get(settings.id_column)
    if value is None or value == "":
        error = BadPicture(f"{name} has no value in the id column {settings.id_column!r}")
        return BatchRow(name=name, media=None, columns=columns, error=str(error))
    return BatchRow(name=name, id=escape_surrogates(str(value)), media=media, columns=columns)
