"""The inputs of a batch run, one after another, as one `RowSource`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics.batch.rows import BatchRow, RowSource
from idefics.batch.sources.files_and_folders import FolderOrPattern, input_of_file
from idefics.batch.sources.folders import is_folder, is_unexpanded_pattern, path_exists
from idefics.batch.sources.hub_dataset import HUB_PREFIX, HubDataset, HubReader
from idefics.batch.sources.imagefolder import ImageFolder, find_metadata
from idefics.batch.sources.settings import (
    InputGroup,
    RemoteFile,
    SingleInput,
    SourcePass,
    SourceSettings,
    error_row,
)
from idefics.batch.sources.skipped import describe_skipped
from idefics.errors import BadPicture, BadSetting, IdeficsError
from idefics.processing.fetch import is_url

STDIN = "-"


@dataclass(frozen=True, slots=True)
class ListFile:
    """A list of inputs, from `list_source`.

    Attributes:
        path: the file; None for standard input.
        content: what was read from standard input.
    """

    path: Path | None
    content: bytes = b""


def list_source(path_or_dash: str) -> ListFile:
    """A text file with paths or URLs, one a line, as an input for `open_source`.

    Args:
        path_or_dash: the file; "-" is standard input, which is read here.

    Raises:
        BadPicture: standard input is a terminal or empty.
    """
    if path_or_dash != STDIN:
        return ListFile(Path(path_or_dash))
    if sys.stdin.isatty():
        raise BadPicture(
            "standard input is a terminal: send the paths into it, as in find ... | idefics run -"
        )
    content = sys.stdin.buffer.read()
    if not content.strip():
        raise BadPicture("standard input is empty: send paths or URLs into it, one a line")
    if b"\0" in content:
        raise BadPicture(
            "standard input is no text: send paths or URLs into it, one a line; `idefics caption -` takes a picture"
        )
    return ListFile(None, content)


def open_source(inputs: Sequence[str | ListFile], settings: SourceSettings) -> RowSource:
    """The rows of files, folders, patterns, URLs, archives, tables, documents, data sets and lists of them.

    Args:
        inputs: read in this order; a file or URL that is named again is left out. "-" is a list on standard input.
        settings: how they are read.

    Raises:
        BadPicture: an input does not exist, is of no known kind, or has nothing to read.
        BadSetting: a table lacks the column that is named, or no column can be the picture.
        MissingExtra: a package that reads the input is not installed.
    """
    if not inputs:
        raise BadPicture("no input given: name pictures, folders, archives, tables or documents")
    named = [list_source(STDIN) if one == STDIN else one for one in inputs]
    singles = [
        PathList(one, settings) if isinstance(one, ListFile) else resolve_input(one, settings)
        for one in named
    ]
    for setting, column in (("image_column", settings.image_column), ("id_column", settings.id_column)):
        if column is not None and not any(one.has_columns for one in singles):
            raise BadSetting(
                f"{setting} is {column!r}, but no input has columns: give a table, or leave it out"
            )
    for single in singles:
        single.check()
    return InputSource(singles)


def resolve_input(text: str, settings: SourceSettings) -> SingleInput:
    """The input that a text names.

    Raises:
        BadPicture: there is no such file, or it is of no known kind.
    """
    from idefics.processing.picture_files import missing_file_message

    if text.startswith(HUB_PREFIX):
        return HubDataset(text, HubReader(text), settings)
    if is_url(text.strip()):
        return RemoteFile(text.strip(), settings)
    if is_unexpanded_pattern(text):
        return FolderOrPattern(text, settings)
    if not path_exists(text):
        raise BadPicture(missing_file_message(text[:100]))
    if is_folder(text):
        metadata = find_metadata(Path(text))
        if metadata is not None:
            return ImageFolder.open(text, metadata, settings)
        return FolderOrPattern(text, settings)
    return input_of_file(text, settings)


class InputSource(InputGroup, RowSource):
    """The rows of several inputs."""

    def __init__(self, singles: Sequence[SingleInput]) -> None:
        self._singles = singles
        self._current_pass = SourcePass()

    def __iter__(self) -> Iterator[BatchRow]:
        """Yields the rows of the inputs in their order."""
        self._current_pass = SourcePass()
        yield from self.rows(self._current_pass)

    def items(self, source_pass: SourcePass) -> Iterator[SingleInput]:
        """Yields the inputs that were not named before."""
        return filter(source_pass.is_new, self._singles)

    def count_rows(self) -> int | None:
        """The number of rows; None if it is not known of an input without reading all of it."""
        return self.count(SourcePass())

    def describe_skipped(self) -> str:
        """What the latest iteration has left out so far, on one line."""
        return describe_skipped(self._current_pass.skipped)


@dataclass(frozen=True, slots=True)
class PathList(InputGroup):
    """A list of paths or URLs, one a line; relative paths begin at the working directory."""

    file: ListFile
    settings: SourceSettings
    has_columns = True  # it may name tables

    @property
    def key(self) -> str | None:
        """The real path; None for standard input."""
        return None if self.file.path is None else os.path.realpath(self.file.path)

    def check(self) -> None:
        """Raises BadPicture if there is no such file, or it cannot be read."""
        from idefics.processing.picture_files import open_regular_file

        if self.file.path is not None:
            open_regular_file(self.file.path, str(self.file.path)).close()

    def items(self, source_pass: SourcePass) -> Iterator[SingleInput | BatchRow]:
        """Yields an input for each line that names a new one; a line that names nothing is a row with an error."""
        try:
            for line in self._lines():
                try:
                    single = resolve_input(line, self.settings)
                    single.check()
                except IdeficsError as error:
                    if source_pass.included.add(line):
                        yield error_row(line, error)
                else:
                    if source_pass.is_new(single):
                        yield single
        except OSError as error:
            yield error_row(
                str(self.file.path), f"{self.file.path} cannot be read: {error.strerror or error}"
            )

    def _lines(self) -> Iterator[str]:
        """Yields the lines that are not blank."""
        path = self.file.path
        with io.BytesIO(self.file.content) if path is None else path.open("rb") as file:
            for number, line in enumerate(file):
                text = line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").rstrip(b"\r\n")
                if text.strip():
                    yield os.fsdecode(text)
