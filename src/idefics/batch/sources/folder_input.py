"""Inputs that are folders, or patterns with * and **."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow
from idefics.batch.sources.file_kinds import input_of_file
from idefics.batch.sources.files import MediaFile
from idefics.batch.sources.folders import PictureSearch, is_folder
from idefics.batch.sources.settings import SingleInput, SourcePass, SourceSettings, error_row
from idefics.errors import BadPicture


@dataclass(frozen=True, slots=True)
class FolderOrPattern:
    """The pictures of a folder, or the files that match a pattern, as `PictureSearch` finds them.

    Archives, tables and documents that match a pattern are inputs of their own.
    """

    name: str
    settings: SourceSettings

    @property
    def key(self) -> None:
        """None: its files are compared, each on its own."""
        return

    @property
    def has_columns(self) -> bool:
        """Whether it is a pattern, which tables may match."""
        return not is_folder(self.name)

    def check(self) -> None:
        """Raises BadPicture if there is no picture in the folder, or no file matches."""
        search, is_pattern = self._search(SourcePass(), []), not is_folder(self.name)
        if next(search.find(self.name, is_pattern=is_pattern), None) is None:
            raise search.nothing_found_error(self.name, is_pattern=is_pattern)

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields the rows of the files; a folder that cannot be read is a row with an error."""
        for item in self._files(source_pass):
            if isinstance(item, BatchRow):
                yield item
            else:
                yield from item.rows(source_pass)

    def count(self, source_pass: SourcePass) -> int | None:
        """The number of rows, by a walk; None if it is unknown for an archive that matches."""
        total = 0
        for item in self._files(source_pass):
            count = 1 if isinstance(item, BatchRow) else item.count(source_pass)
            if count is None:
                return None
            total += count
        return total

    def _files(self, source_pass: SourcePass) -> Iterator[SingleInput | BatchRow]:
        """Yields an input for each file, and a row with an error for each file or folder that cannot be read."""
        errors: list[BatchRow] = []
        is_pattern = not is_folder(self.name)
        try:
            for path in self._search(source_pass, errors).find(self.name, is_pattern=is_pattern):
                yield from errors
                errors.clear()
                try:
                    yield (
                        input_of_file(str(path), self.settings)
                        if is_pattern
                        else MediaFile(escape_surrogates(str(path)), path)
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
