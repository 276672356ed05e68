"""The pictures of a batch, from files, folders and zip archives. They are unpacked in memory, picture by picture."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Self

from idefics.errors import BadPicture, BadRequest
from idefics.formats import (
    SIGNATURE_BYTES,
    UNTRUSTED_IMAGE_FORMATS,
    detect_image_format,
    image_format_by_suffix,
)
from idefics.page.backend import MAX_PICTURE_BYTES
from idefics.page.uploaded_picture import UploadedPicture

MAX_PICTURES = 2000
MAX_ZIP_MEMBERS = 10_000  # files of any kind in a zip
MAX_UNPACKED_BYTES = 2 * 2**30  # of all pictures of a zip together
ZIP_READ_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class PictureEntry:
    """One picture: its name, and a function that reads its bytes or raises BadPicture."""

    name: str
    read: Callable[[], bytes]


class PictureSources:
    """The pictures of uploaded files, sorted by name. A context manager: zip archives stay open until it is left.

    Args:
        files: pictures and zips; other files are skipped and counted.

    Attributes:
        entries: the pictures.
        num_skipped_by_format: title of a format, or "other" -> number of skipped files.

    Raises:
        BadRequest: a zip cannot be read or is too large, or there are too many pictures.
    """

    def __init__(self, files: Sequence[UploadedPicture]) -> None:
        self.entries: list[PictureEntry] = []
        self.num_skipped_by_format: Counter[str] = Counter()
        self._open_archives = ExitStack()
        try:
            for file in files:
                self._add_file(file)
            if len(self.entries) > MAX_PICTURES:
                raise BadRequest(
                    f"{len(self.entries):,} pictures are too many for a page, which takes {MAX_PICTURES:,}: "
                    "`idefics caption FOLDER` takes any number"
                )
        except BaseException:
            self._open_archives.close()
            raise
        self.entries.sort(key=lambda entry: entry.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_archives.close()

    def _add_file(self, file: UploadedPicture) -> None:
        """Adds the pictures of a file: the file itself, or those in a zip."""
        if file.name.lower().endswith(".zip"):
            self.entries += self._zip_entries(file)
        elif self._is_picture_or_count_skipped(file.name, partial(_read_file_head, Path(file.path))):
            self.entries.append(PictureEntry(file.name, Path(file.path).read_bytes))

    def _zip_entries(self, file: UploadedPicture) -> Iterator[PictureEntry]:
        """Yields the pictures in a zip, which stays open; raises BadRequest if it is too large or cannot be read."""
        try:
            archive = self._open_archives.enter_context(zipfile.ZipFile(file.path))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise BadRequest(f"{file.name} is not a zip that can be read: pack it again") from None
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > MAX_ZIP_MEMBERS:
            raise BadRequest(
                f"{file.name} holds {len(members):,} files; at most {MAX_ZIP_MEMBERS:,} are read"
            )
        pictures = [
            member
            for member in members
            if self._is_picture_or_count_skipped(member.filename, partial(_read_member_head, archive, member))
        ]
        num_unpacked_bytes = sum(member.file_size for member in pictures)
        if num_unpacked_bytes > MAX_UNPACKED_BYTES:
            raise BadRequest(
                f"{file.name} unpacks to {num_unpacked_bytes:,} bytes of pictures; at most {MAX_UNPACKED_BYTES:,} are "
                "read: split it"
            )
        for member in pictures:
            yield PictureEntry(f"{file.name}/{member.filename}", _make_member_reader(archive, member))

    def _is_picture_or_count_skipped(self, name: str, read_head: Callable[[], bytes]) -> bool:
        """Whether a file is a picture by its suffix, or by its first bytes if it has none; counts skipped files."""
        path = PurePosixPath(name.replace("\\", "/"))
        is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        file_format = (
            None
            if is_hidden
            else image_format_by_suffix(path.name)
            if path.suffix
            else detect_image_format(read_head())
        )
        if file_format in UNTRUSTED_IMAGE_FORMATS:
            return True
        self.num_skipped_by_format["other" if file_format is None else file_format.title] += 1
        return False


def _read_file_head(path: Path) -> bytes:
    """The first `SIGNATURE_BYTES` bytes of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(SIGNATURE_BYTES)
    except OSError:
        return b""


def _read_member_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The first `SIGNATURE_BYTES` bytes of a file in a zip; empty if it cannot be read."""
    try:
        with archive.open(member) as file:
            return file.read(SIGNATURE_BYTES)
    except ZIP_READ_ERRORS:
        return b""


def _make_member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    """A function that unpacks one file of a zip into memory; the size that the zip claims is not trusted."""
    name = member.filename

    def read() -> bytes:
        if member.flag_bits & 1:
            raise BadPicture(f"{name} is encrypted: pack it without a password")
        try:
            with archive.open(member) as file:
                data = file.read(MAX_PICTURE_BYTES + 1)
        except ZIP_READ_ERRORS:
            raise BadPicture(f"{name} is broken in the zip: pack it again") from None
        if len(data) > MAX_PICTURE_BYTES:
            raise BadPicture(f"{name} is larger than {MAX_PICTURE_BYTES:,} bytes: make it smaller")
        return data

    return read
