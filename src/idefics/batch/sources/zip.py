"""Zip archives of pictures and videos; members are unpacked one by one, when they are read."""

from __future__ import annotations

import lzma
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from idefics.batch.rows import BatchRow, Media
from idefics.batch.sources.media import read_whole
from idefics.batch.sources.settings import SourcePass, SourceSettings, error_row
from idefics.batch.sources.skipped import DUPLICATE, archive_skip_reason
from idefics.errors import BadPicture
from idefics.formats import SIGNATURE_BYTES

# What zipfile raises about a broken or unsupported archive; RuntimeError is about a password.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError),
    *(NotImplementedError, RuntimeError),
)
ENCRYPTED_FLAG = 1  # of a member's flag bits (APPNOTE.TXT, 4.4.4)


@dataclass(frozen=True, slots=True)
class ZipArchive:
    """A zip archive.

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

    @property
    def has_columns(self) -> bool:
        """False."""
        return False

    def check(self) -> None:
        """Does nothing: a broken archive is a row with an error."""

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields a row for each picture or video, in the order of the archive; one with an error if it is broken."""
        try:
            archive = zipfile.ZipFile(self.path)
        except ZIP_ERRORS as error:
            yield error_row(self.name, f"{self.name} cannot be read as a zip: {error}")
            return
        lock = threading.Lock()
        for member in self._members(archive, lock, source_pass):
            name = f"{self.name}/{member.filename}"
            if member.flag_bits & ENCRYPTED_FLAG:
                yield error_row(name, f"{name} is encrypted: pack it without a password")
                continue
            read = partial(_read_member, archive, member, lock, name)
            yield BatchRow(name=name, media=Media(path=name, read=read, container=self.path))

    def count(self, source_pass: SourcePass) -> int:
        """The number of pictures and videos by the names in the archive."""
        return sum(1 for _ in self.rows(source_pass))

    def _members(
        self, archive: zipfile.ZipFile, lock: threading.Lock, source_pass: SourcePass
    ) -> Iterator[zipfile.ZipInfo]:
        """Yields the members that are pictures or videos; counts others as skipped."""
        for member in archive.infolist():
            if member.is_dir():
                continue
            reason = archive_skip_reason(member.filename, partial(_read_head, archive, member, lock))
            if not reason and archive.NameToInfo[member.filename] is not member:
                reason = DUPLICATE  # as in other programs, the last member of a name counts
            if reason is None:
                yield member
            elif reason:
                source_pass.skipped[reason] += 1


def _read_head(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock) -> bytes:
    """The first bytes of a member; b"" if it cannot be read."""
    try:
        with lock, archive.open(member) as file:
            return file.read(SIGNATURE_BYTES)
    except ZIP_ERRORS:
        return b""


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: threading.Lock, name: str) -> bytes:
    """The unpacked bytes of a member: as many as the archive declares, which is where zipfile stops unpacking.

    Raises:
        BadPicture: it is broken, or has more than `MAX_MEDIA_BYTES`.
    """
    try:
        with lock, archive.open(member) as file:
            return read_whole(file, member.file_size, name)
    except BadPicture:
        raise
    except ZIP_ERRORS as error:
        raise BadPicture(f"{name} is broken in the zip: {error}") from None
