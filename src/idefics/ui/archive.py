"""The pictures of a batch: files, a folder's files, and what is in a zip. Nothing is ever unpacked to a disk."""

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
from idefics.formats import HEAD_BYTES, UNTRUSTED_FORMATS, format_named, recognised
from idefics.ui.desk import MOST_BYTES
from idefics.ui.given import Given

MOST_PICTURES = 2000
MOST_MEMBERS = 10_000  # of a zip, folders and other files among them
MOST_UNPACKED = 2 * 2**30  # bytes of a zip's pictures together
BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: what it is called, and what gives its bytes or a BadPicture that says why not."""

    name: str
    read: Callable[[], bytes]


class Sources:
    """Pictures by name, sorted; a `with` block, for zips stay open meanwhile.

    Args:
        files: pictures and zips. What is neither is left out, and counted.

    Attributes:
        entries: the pictures.
        left_out: how many files were none, by their format: its title, or "other".

    Raises:
        BadRequest: a zip cannot be read, has too much in it, or there are too many pictures.
    """

    def __init__(self, files: Sequence[Given]) -> None:
        self.entries: list[Entry] = []
        self.left_out: Counter[str] = Counter()
        self._open = ExitStack()
        try:
            for given in files:
                self._add(given)
            if len(self.entries) > MOST_PICTURES:
                raise BadRequest(
                    f"{len(self.entries):,} pictures are too many for a page, which takes {MOST_PICTURES:,}: "
                    "`idefics caption FOLDER` takes any number"
                )
        except BaseException:
            self._open.close()
            raise
        self.entries.sort(key=lambda entry: entry.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _add(self, given: Given) -> None:
        if given.name.lower().endswith(".zip"):
            self.entries += self._members(given)
        elif self._is_picture(given.name, partial(_head_of_file, Path(given.path))):
            self.entries.append(Entry(given.name, Path(given.path).read_bytes))

    def _members(self, given: Given) -> Iterator[Entry]:
        try:
            archive = self._open.enter_context(zipfile.ZipFile(given.path))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise BadRequest(f"{given.name} is not a zip that can be read: pack it again") from None
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > MOST_MEMBERS:
            raise BadRequest(f"{given.name} holds {len(members):,} files; at most {MOST_MEMBERS:,} are read")
        pictures = [
            member
            for member in members
            if self._is_picture(member.filename, partial(_head_of_member, archive, member))
        ]
        size = sum(member.file_size for member in pictures)
        if size > MOST_UNPACKED:
            raise BadRequest(
                f"{given.name} unpacks to {size:,} bytes of pictures; at most {MOST_UNPACKED:,} are read: split it"
            )
        for member in pictures:
            yield Entry(f"{given.name}/{member.filename}", _reader(archive, member))

    def _is_picture(self, name: str, head: Callable[[], bytes]) -> bool:
        """Whether a file is a picture by its suffix, or by its first bytes if it has none; counts what is not."""
        path = PurePosixPath(name.replace("\\", "/"))
        is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        one = None if is_hidden else format_named(path.name) if path.suffix else recognised(head())
        if one in UNTRUSTED_FORMATS:
            return True
        self.left_out["other" if one is None else one.title] += 1
        return False


def _head_of_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _head_of_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(HEAD_BYTES)
    except BROKEN:
        return b""


def _reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    """What unpacks one member into memory. What it says of its size is not believed."""
    name = member.filename

    def read() -> bytes:
        if member.flag_bits & 1:
            raise BadPicture(f"{name} is encrypted: pack it without a password")
        try:
            with archive.open(member) as file:
                data = file.read(MOST_BYTES + 1)
        except BROKEN:
            raise BadPicture(f"{name} is broken in the zip: pack it again") from None
        if len(data) > MOST_BYTES:
            raise BadPicture(f"{name} is larger than {MOST_BYTES:,} bytes: make it smaller")
        return data

    return read
