"""Tar archives of pictures and videos, and of samples in the layout of WebDataset.

WebDataset (https://github.com/webdataset/webdataset): the members of one sample stand next to each other and have the
same key, the path up to the first dot of the base name; what follows is the field. Fields "json", "txt" and "cls"
become columns, each picture or video is a row.
"""

from __future__ import annotations

import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.settings import (
    MAX_MEDIA_BYTES,
    FileInput,
    SourcePass,
    bytes_media,
    column_row,
    error_row,
    read_whole,
    too_large_error,
)
from idefics.batch.sources.skipped import DUPLICATE, SPECIAL_FILE, archive_skip_reason
from idefics.errors import BadPicture
from idefics.formats import SIGNATURE_BYTES
from idefics.media_sources import BinaryFile

TAR_ERRORS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
COMPRESSED_SIGNATURES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # gzip (RFC 1952), bzip2, xz
SAMPLE_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # key and field of a member's path
COLUMN_FIELDS = ("json", "txt", "cls")
MAX_COLUMN_BYTES = 2**24  # of the file of one column


@dataclass(slots=True)
class TarSample:
    """The members of one sample that were read so far.

    Attributes:
        key: the path up to the first dot of the base name.
        media: (name of the row, field, the picture or video), or the reason why it cannot be read.
        columns: those of its JSON and text files.
        errors: why a column cannot be read.
    """

    key: str
    media: list[tuple[str, str, Media | str]] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class TarArchive(FileInput):
    """A tar archive, which may be compressed.

    Members of an uncompressed archive are read when their row is; the rows of a compressed one hold their bytes.
    """

    has_columns = True

    def count(self, source_pass: SourcePass) -> None:
        """None: it is not known without reading all of the archive."""

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields the rows of the samples; a last one with an error if the archive is broken or cut off."""
        names = set[str]()
        sample = TarSample("")
        try:
            with closing(_open_tar(self.path)) as archive:
                for member in _read_members(archive):
                    path = escape_surrogates(str(PurePosixPath(member.name)))
                    match = SAMPLE_KEY.fullmatch(path)
                    key, field_name = (match[1], match[2]) if match else (path, "")
                    if key != sample.key:
                        yield from self._sample_rows(sample)
                        sample = TarSample(key)
                    self._add(sample, archive, member, path, field_name, names, source_pass)
        except TAR_ERRORS as error:
            yield from self._sample_rows(sample)
            yield error_row(self.name, f"{self.name} is broken or cut off, what follows is not read: {error}")
            return
        yield from self._sample_rows(sample)

    def _add(
        self,
        sample: TarSample,
        archive: tarfile.TarFile,
        member: tarfile.TarInfo,
        path: str,
        field_name: str,
        names: set[str],
        source_pass: SourcePass,
    ) -> None:
        """Adds a member to its sample, or counts it as skipped; `names` are the paths of earlier members."""
        if member.isdir():
            return
        if not member.isreg():
            source_pass.skipped[SPECIAL_FILE] += 1
            return
        file: Any = archive.extractfile(member)  # a BufferedReader, as the member is a regular file
        with file:
            reason = archive_skip_reason(path, lambda: file.peek(SIGNATURE_BYTES)[:SIGNATURE_BYTES])
            extension = field_name.rpartition(".")[2].lower()
            if reason is None and path in names:
                reason = DUPLICATE
            if reason is None:
                names.add(path)
                is_lazy = not isinstance(archive, _CompressedTar) and not member.issparse()
                media = self._media(member, None if is_lazy else file, f"{self.name}/{path}")
                sample.media.append((f"{self.name}/{path}", field_name, media))
            elif reason and extension in COLUMN_FIELDS:
                _add_columns(
                    sample, field_name, extension, file.read(MAX_COLUMN_BYTES + 1), f"{self.name}/{path}"
                )
            elif reason:
                source_pass.skipped[reason] += 1

    def _media(self, member: tarfile.TarInfo, file: BinaryFile | None, name: str) -> Media | str:
        """The picture or video in a member, or the reason why it cannot be read.

        Args:
            file: it is read from here now; None: from the archive, later.
        """
        try:
            if member.size > MAX_MEDIA_BYTES:
                raise too_large_error(name)
            if file is not None:
                return bytes_media(read_whole(file, member.size, name), name, self.path)
        except BadPicture as error:
            return str(error)
        read = partial(_read_range, self.path, member.offset_data, member.size, name)
        return Media(path=name, read=read, container=self.path)

    def _sample_rows(self, sample: TarSample) -> Iterator[BatchRow]:
        """Yields a row for each picture of a sample, or for the one that the image column names."""
        column = self.settings.image_column
        media = [one for one in sample.media if column in (None, one[1])]
        for name, _, one in media:
            if isinstance(one, str) or sample.errors:
                error = one if isinstance(one, str) else sample.errors[0]
                yield BatchRow(name=name, media=None, columns=sample.columns, error=error)
            else:
                yield column_row(name, one, sample.columns, self.settings)
        if column is not None and not media and (sample.media or sample.columns):
            name = f"{self.name}/{sample.key}"
            fields = ", ".join(field_name for _, field_name, _ in sample.media) or "none"
            yield error_row(name, f"{name} has no picture {column!r}; its pictures are: {fields}")


class _CompressedTar(tarfile.TarFile):
    """A tar archive that is unpacked while it is read, forwards alone."""


def _open_tar(path: Path) -> tarfile.TarFile:
    """Opens a tar archive, compressed or not, by its content."""
    with path.open("rb") as file:
        head = file.read(SIGNATURE_BYTES)
    if head.startswith(COMPRESSED_SIGNATURES):
        return _CompressedTar.open(path, "r|*")
    return tarfile.TarFile.open(path, "r:")


def _read_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members. Unlike tarfile it keeps none in memory, and finds that an archive is cut off.

    Raises:
        tarfile.TarError: a header is broken, or the mark of the end is missing (POSIX.1-2017, pax, "ustar
            Interchange Format": two blocks of zeros).
    """
    member = archive.next()  # read when the archive was opened
    while member is not None:
        yield member
        file: Any = archive.fileobj
        file.seek(archive.offset)
        try:
            member = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the stubs leave it out
            return
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without the mark of the end") from None


def _add_columns(sample: TarSample, field_name: str, extension: str, data: bytes, name: str) -> None:
    """Adds the keys of a JSON file, or the text of another, to the columns of a sample."""
    if len(data) > MAX_COLUMN_BYTES:
        sample.errors.append(f"{name} is larger than {MAX_COLUMN_BYTES:,} bytes, too large for a column")
        return
    column = field_name.removesuffix(f".{extension}")
    try:
        text = data.decode("utf-8-sig").strip()
        value = json.loads(text) if extension == "json" else text
    except (ValueError, RecursionError) as error:
        sample.errors.append(f"{name} is not valid {'JSON' if extension == 'json' else 'UTF-8'}: {error}")
        return
    sample.columns.update(value if column == "json" and isinstance(value, dict) else {column: value})


def _read_range(path: Path, offset: int, size: int, name: str) -> bytes:
    """The bytes of a member of an uncompressed archive.

    Raises:
        BadPicture: the archive cannot be read, or is cut off.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return read_whole(file, size, name)
    except BadPicture:
        raise
    except OSError as error:
        raise BadPicture(f"{name} cannot be read: {error.strerror or error}") from None
