"""`SourceSettings`, how inputs are read, and what all kinds of inputs share: `SingleInput` and the `Media` of rows."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.skipped import DUPLICATE, IncludedFiles
from idefics.errors import BadPicture
from idefics.media_sources import BinaryFile
from idefics.processing.fetch import Fetcher, is_data_uri, is_url, normalize_source_text
from idefics.validation import describe_type, validate_range


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


class InputGroup(SingleInput):
    """Base of the inputs that are several others."""

    def items(self, source_pass: SourcePass) -> Iterator[SingleInput | BatchRow]:
        """Yields the inputs that were not named before, and a row with an error for each that cannot be read."""
        raise NotImplementedError

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields the rows of all inputs."""
        for item in self.items(source_pass):
            if isinstance(item, BatchRow):
                yield item
            else:
                yield from item.rows(source_pass)

    def count(self, source_pass: SourcePass) -> int | None:
        """The number of rows of all inputs; None if one is unknown."""
        total = 0
        for item in self.items(source_pass):
            count = 1 if isinstance(item, BatchRow) else item.count(source_pass)
            if count is None:
                return None
            total += count
        return total


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

    def count(self, source_pass: SourcePass) -> int | None:
        """The number of rows, whose pictures are not read."""
        return sum(1 for _ in self.rows(source_pass))


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
        error = f"{name} has no value in the id column {settings.id_column!r}"
        return BatchRow(name=name, media=None, columns=columns, error=error)
    return BatchRow(name=name, id=escape_surrogates(str(value)), media=media, columns=columns)


MAX_MEDIA_BYTES = (
    2**29
)  # of one picture or video: half a gigabyte, as the largest picture that is decoded has in RGB
MAX_PATH_CHARACTERS = 4096


def too_large_error(name: str) -> BadPicture:
    """The error about a picture or video of more than `MAX_MEDIA_BYTES` bytes."""
    return BadPicture(f"{name} is larger than {MAX_MEDIA_BYTES:,} bytes: make it smaller")


def read_file(path: Path, name: str) -> bytes:
    """The bytes of a picture or video file.

    Raises:
        BadPicture: there is no such file, it cannot be read, is a folder or device, or has more than `MAX_MEDIA_BYTES`.
    """
    from idefics.processing.picture_files import open_regular_file

    try:
        with open_regular_file(path, name) as file:
            return read_whole(file, os.fstat(file.fileno()).st_size, name)
    except BadPicture:
        raise
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror or error}") from None


def read_whole(file: BinaryFile, size: int, name: str) -> bytes:
    """The next `size` bytes of a file; raises BadPicture if they are more than `MAX_MEDIA_BYTES`, or fewer are there.

    Args:
        name: of the picture, for messages.
    """
    if size > MAX_MEDIA_BYTES:
        raise too_large_error(name)
    data = file.read(size)
    if len(data) < size:
        raise BadPicture(f"{name} is cut off: {len(data):,} of {size:,} bytes are there")
    return data


def file_media(path: Path, name: str) -> Media:
    """The picture or video in a file.

    Args:
        name: the path as it was given.
    """
    return Media(path=name, read=partial(read_file, path, name), file=path, container=path)


def bytes_media(data: bytes, name: str, container: Path | None) -> Media:
    """A picture or video that is in memory.

    Raises:
        BadPicture: it has more than `MAX_MEDIA_BYTES` bytes.
    """
    if len(data) > MAX_MEDIA_BYTES:
        raise too_large_error(name)
    return Media(path=name, read=partial(bytes, data), container=container)


def cell_media(value: object, name: str, folder: Path, container: Path | None, fetcher: Fetcher) -> Media:
    """The picture or video that the cell of a table gives.

    Args:
        value: bytes, a path, an http(s) URL, a data URI or base64 of a picture; or Hugging Face's dict of "bytes" and
            "path", of which one may be None.
        name: of the row.
        folder: where relative paths begin.
        container: the file of the table; None if it has none.

    Raises:
        BadPicture: the value is empty or of another type.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return bytes_media(value, name, container)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadPicture(f"{name} has no picture: its cell is empty")
    if not isinstance(value, str):
        raise BadPicture(
            f"{name} has {describe_type(value)} as picture: give a path, a URL, base64 or the bytes of a file"
        )
    if escape_surrogates(value) != value or "\0" in value:
        raise BadPicture(
            f"{name} has {escape_surrogates(value)[:100]!r} as picture, which neither a path nor a URL can be"
        )
    text = normalize_source_text(value)
    if is_data_uri(text):
        return Media(path=name, read=partial(fetcher.get, text), container=container)
    if is_url(text):
        return Media(path=text, read=partial(fetcher.get, text))
    if len(text) > MAX_PATH_CHARACTERS:
        raise BadPicture(
            f"{name} has a picture text of {len(text):,} characters that is neither a path nor base64 of a picture"
        )
    path = folder / text
    return file_media(path, escape_surrogates(str(path)))


class MediaFile(FileInput):
    """A picture or video file."""

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields one row."""
        yield BatchRow(name=self.name, media=file_media(self.path, self.name))


@dataclass(frozen=True, slots=True)
class RemoteFile(SingleInput):
    """A picture or video at an http(s) URL, or in a data URI."""

    url: str
    settings: SourceSettings

    @property
    def key(self) -> str:
        """The URL."""
        return self.url

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields one row; that of a data URI is named by its media type and a hash."""
        name = self.url
        if is_data_uri(name):
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16]
            name = f"{name[:40].split(',', 1)[0]}#{digest}"
        media = Media(path=name, read=partial(self.settings.fetcher.get, self.url))
        yield BatchRow(name=name, media=media)

    def count(self, source_pass: SourcePass) -> int:
        """1."""
        return 1
