"""Which files an input has had already, so that the same real file named twice is one row."""

from __future__ import annotations

import hashlib
import os
from fnmatch import fnmatch
from pathlib import Path

from idefics.batch.sources.skipped import skip_reason


class IncludedFiles:
    """The files and URLs that were found so far.

    Files of searched folders take no memory of their own: a folder is kept with the pattern it was searched by. Each
    file or URL that was named takes about a hundred bytes.
    """

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._searches: dict[
            str, set[tuple[str, str]]
        ] = {}  # real folder -> name patterns and accepted suffixes

    def add(self, real_path: str) -> bool:
        """Adds the real path of a file, or a URL; returns whether it is new."""
        if real_path in self:
            return False
        self._digests.add(_digest(real_path))
        return True

    def add_folder(self, real_folder: str, name_pattern: str, accepted_suffix: str) -> None:
        """Adds all pictures of a folder whose names match a pattern, and files with a suffix; "": of no suffix."""
        self._searches.setdefault(real_folder, set()).add((name_pattern, accepted_suffix))

    def __contains__(self, real_path: str) -> bool:
        if self._digests and _digest(real_path) in self._digests:
            return True
        folder, name = os.path.split(real_path)
        return any(
            fnmatch(name, pattern)
            and (not name.startswith(".") or pattern.startswith("."))
            and skip_reason(Path(real_path), suffix) is None
            for pattern, suffix in self._searches.get(folder, ())
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()
