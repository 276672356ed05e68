"""Which kind of input a file is, by its suffix or else its content; inputs that are folders, or patterns with *."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow
from idefics.batch.sources.folders import PictureSearch, is_folder
from idefics.batch.sources.parquet_table import ParquetReader
from idefics.batch.sources.settings import (
    InputGroup,
    MediaFile,
    SingleInput,
    SourcePass,
    SourceSettings,
    error_row,
)
from idefics.batch.sources.tables import TableInput
from idefics.batch.sources.tar import TarArchive
from idefics.batch.sources.text_tables import CsvReader, JsonLinesReader
from idefics.batch.sources.zip_and_pdf import PdfDocument, ZipArchive
from idefics.errors import BadPicture
from idefics.formats import VIDEO_SUFFIXES, detect_image_format, detect_video_format, image_format_by_suffix

MakeInput = Callable[[str, Path, SourceSettings], SingleInput]

INPUT_BY_SUFFIX: dict[str, MakeInput] = {
    ".zip": ZipArchive,
    ".pdf": PdfDocument,
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), TarArchive),
    **dict.fromkeys((".jsonl", ".ndjson"), lambda name, path, s: TableInput(name, JsonLinesReader(path), s)),
    **dict.fromkeys((".csv", ".tsv"), lambda name, path, s: TableInput(name, CsvReader(path), s)),
    ".parquet": lambda name, path, s: TableInput(name, ParquetReader(path), s),
}


def input_of_file(text: str, settings: SourceSettings) -> SingleInput:
    """The input that a file is: an archive, a table, a document, a picture or a video.

    Args:
        text: the path of an existing file, as given.

    Raises:
        BadPicture: its suffix is unknown, and its content is neither a picture nor a video.
    """
    from idefics.processing.picture_files import read_file_head

    name, path = escape_surrogates(text), Path(text)
    lower = path.name.lower()
    for suffix, make_input in INPUT_BY_SUFFIX.items():
        if lower.endswith(suffix):
            return make_input(name, path, settings)
    if image_format_by_suffix(lower) is not None or lower.endswith(VIDEO_SUFFIXES):
        return MediaFile(name, path, settings)
    try:
        head = read_file_head(path) if path.is_file() else b""
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror}") from None
    if detect_image_format(head) is not None or detect_video_format(head) is not None:
        return MediaFile(name, path, settings)
    kinds = ", ".join(INPUT_BY_SUFFIX)
    hint = f"; is it a list of paths? then --from {name}" if lower.endswith(".txt") else ""
    raise BadPicture(f"{name} is no input that is read: give pictures, videos, folders or {kinds}{hint}")


@dataclass(frozen=True, slots=True)
class FolderOrPattern(InputGroup):
    """The pictures of a folder, or the files that match a pattern, as `PictureSearch` finds them.

    Archives, tables and documents that match a pattern are inputs of their own.
    """

    name: str
    settings: SourceSettings

    @property
    def has_columns(self) -> bool:
        """Whether it is a pattern, which tables may match."""
        return not is_folder(self.name)

    def check(self) -> None:
        """Raises BadPicture if there is no picture in the folder, or no file matches."""
        search, is_pattern = self._search(SourcePass(), []), self.has_columns
        if next(search.find(self.name, is_pattern=is_pattern), None) is None:
            raise search.nothing_found_error(self.name, is_pattern=is_pattern)

    def items(self, source_pass: SourcePass) -> Iterator[SingleInput | BatchRow]:
        """Yields an input for each file, and a row with an error for each file or folder that cannot be read."""
        errors: list[BatchRow] = []
        is_pattern = self.has_columns
        try:
            for path in self._search(source_pass, errors).find(self.name, is_pattern=is_pattern):
                yield from errors
                errors.clear()
                try:
                    yield (
                        input_of_file(str(path), self.settings)
                        if is_pattern
                        else MediaFile(escape_surrogates(str(path)), path, self.settings)
                    )
                except BadPicture as error:
                    yield error_row(str(path), error)
        except BadPicture as error:
            errors.append(error_row(self.name, error))
        yield from errors

    def _search(self, source_pass: SourcePass, errors: list[BatchRow]) -> PictureSearch:
        """A search that appends a row to `errors` for each subfolder that cannot be read."""
        return PictureSearch(
            recursive=self.settings.recursive,
            report_error=lambda folder, message: errors.append(error_row(str(folder), message)),
            skipped=source_pass.skipped,
            included=source_pass.included,
        )
