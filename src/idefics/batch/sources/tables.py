"""Tables whose rows name or hold a picture: which column it is, and the rows of any table that a reader reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.settings import (
    SingleInput,
    SourcePass,
    SourceSettings,
    cell_media,
    column_row,
    error_row,
)
from idefics.errors import BadPicture, BadSetting, IdeficsError
from idefics.processing.fetch import Fetcher

IMAGE_COLUMNS = ("image", "image_path", "file_name", "path", "url")  # the first that a table has is taken
MAX_NAMED_COLUMNS = 20  # that an error message lists


class TableReader(Protocol):
    """Reads the records of one kind of table."""

    @property
    def key(self) -> str:
        """What makes it the same as another table: its real path."""
        ...

    def read_columns(self) -> Sequence[str]:
        """The names of the columns; empty if there is no record.

        Raises:
            BadPicture: the table cannot be read.
            MissingExtra: the package that reads it is not installed.
        """
        ...

    def declared_image_column(self) -> str | None:
        """The column that the table's own metadata declares to hold pictures; None if it declares none."""
        ...

    def records(self) -> Iterator[Mapping[str, Any] | str]:
        """Yields the records; instead of one that cannot be read, the reason.

        Raises:
            BadPicture: the table cannot be read, or not to its end.
        """
        ...

    def media(self, value: object, name: str, fetcher: Fetcher) -> Media:
        """The picture or video that a cell gives; raises BadPicture if it gives none."""
        ...

    def count(self) -> int | None:
        """The number of records; None if it is unknown."""
        ...


@dataclass(frozen=True)
class FileTable:
    """What tables in files share.

    Attributes:
        path: the file; relative paths in its cells begin at its folder.
    """

    path: Path

    @property
    def key(self) -> str:
        """The real path."""
        return os.path.realpath(self.path)

    def declared_image_column(self) -> str | None:
        """None."""
        return None

    def media(self, value: object, name: str, fetcher: Fetcher) -> Media:
        """The picture or video that a cell gives, as `cell_media`."""
        return cell_media(value, name, self.path.parent, self.path, fetcher)


@dataclass(frozen=True, slots=True)
class TableInput(SingleInput):
    """A table.

    Attributes:
        name: as given; rows are named by it and their number, "rows.csv#17".
        reader: reads its records.
    """

    name: str
    reader: TableReader
    settings: SourceSettings
    has_columns = True

    @property
    def key(self) -> str:
        """The real path."""
        return self.reader.key

    def check(self) -> None:
        """Raises BadSetting if a column is missing; a broken table is a row with an error."""
        try:
            self.choose_image_column()
        except BadPicture:
            return

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each record; a last one with an error if the table is broken."""
        try:
            image_column = self.choose_image_column()
            for number, record in enumerate(self.reader.records(), 1):
                yield self._row(f"{self.name}#{number}", record, image_column)
        except IdeficsError as error:
            yield error_row(self.name, error)

    def count(self, source_pass: SourcePass) -> int | None:
        """The number of records; 1, the row with an error, if the table cannot be read."""
        try:
            self.choose_image_column()
            return self.reader.count()
        except IdeficsError:
            return 1

    def _row(self, name: str, record: Mapping[str, Any] | str, image_column: str) -> BatchRow:
        """The row of a record."""
        if isinstance(record, str):
            return error_row(name, f"{name} {record}")
        columns = {column: value for column, value in record.items() if column != image_column}
        try:
            media = self.reader.media(record.get(image_column), name, self.settings.fetcher)
        except BadPicture as error:
            return BatchRow(name=name, media=None, columns=columns, error=str(error))
        return column_row(name, media, columns, self.settings)

    def choose_image_column(self) -> str:
        """The column with the pictures; "" if the table has no record.

        Raises:
            BadSetting: there is no such column, or no column of the id.
        """
        columns, settings = self.reader.read_columns(), self.settings
        if not columns:
            return ""
        listed = ", ".join(map(str, columns[:MAX_NAMED_COLUMNS])) + (
            ", ..." if len(columns) > MAX_NAMED_COLUMNS else ""
        )
        twice = next((column for column in columns if list(columns).count(column) > 1), None)
        if twice is not None:
            raise BadSetting(f"{self.name} has two columns {twice!r}: rename one")
        for setting, column in (("image_column", settings.image_column), ("id_column", settings.id_column)):
            if column is not None and column not in columns:
                raise BadSetting(f"{self.name} has no column {column!r} ({setting}); it has {listed}")
        choices = (settings.image_column, self.reader.declared_image_column(), *IMAGE_COLUMNS)
        chosen = next((column for column in choices if column in columns), None)
        if chosen is None:
            raise BadSetting(
                f"{self.name} has no column {', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}; it has {listed}: "
                "name the one with the pictures with image_column"
            )
        return chosen
