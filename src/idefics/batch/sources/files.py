"""Inputs that are one picture or video each: a file, or a URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from idefics.batch.rows import BatchRow
from idefics.batch.sources.media import file_media, url_media
from idefics.batch.sources.settings import SourcePass, SourceSettings
from idefics.processing.fetch import is_data_uri


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A picture or video file.

    Attributes:
        name: its path as given, in UTF-8.
        path: the file.
    """

    name: str
    path: Path

    @property
    def key(self) -> str:
        """The real path."""
        return os.path.realpath(self.path)

    @property
    def has_columns(self) -> bool:
        """False."""
        return False

    def check(self) -> None:
        """Does nothing: `Media.read` reports what is wrong with the file."""

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields one row."""
        yield BatchRow(name=self.name, media=file_media(self.path, self.name))

    def count(self, source_pass: SourcePass) -> int:
        """1."""
        return 1


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A picture or video at an http(s) URL, or in a data URI."""

    url: str
    settings: SourceSettings

    @property
    def key(self) -> str:
        """The URL."""
        return self.url

    @property
    def has_columns(self) -> bool:
        """False."""
        return False

    def check(self) -> None:
        """Does nothing: the file is fetched when it is read."""

    def rows(self, source_pass: SourcePass) -> Iterator[BatchRow]:
        """Yields one row; that of a data URI is named by its media type and a hash."""
        name = self.url
        if is_data_uri(name):
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16]
            name = f"{name[:40].split(',', 1)[0]}#{digest}"
        yield BatchRow(name=name, media=url_media(self.url, name, self.settings.fetcher))

    def count(self, source_pass: SourcePass) -> int:
        """1."""
        return 1
