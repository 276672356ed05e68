"""Which files are left out of folders and archives: those that an input has had already; why, as a line for people."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from idefics.formats import (
    VIDEO_SUFFIXES,
    detect_image_format,
    detect_video_format,
    image_format_by_suffix,
)


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


# A file of another kind is counted by its suffix.
SUBFOLDER = "{count} subfolder{s} (--recursive includes {them})"
VIDEO = "{count} video{s} (to include one, name it)"
DUPLICATE = "{count} picture{s} named more than once"
DUPLICATE_LINK = "{count} link{s} to a picture that is included anyway"
BROKEN_LINK = "{count} broken link{s}"
SPECIAL_FILE = "{count} special file{s}"
UNLISTED = "{count} picture{s} without a line in the folder's metadata"
MISSING_EXTRA = "{{count}} {title} (pip install 'idefics[{extra}]', or convert to JPEG)"
UNREADABLE_FORMAT = "{{count}} {title} (not read: convert to JPEG)"


def skip_reason(file: Path, accepted_suffix: str = "") -> str | None:
    """Why a file is skipped: words for `describe_skipped`, or its suffix; None: it is a picture that can be read.

    Args:
        accepted_suffix: in lower case; files with this suffix are pictures in any case; "": none are.
    """
    from idefics.processing.picture_files import read_file_head

    suffix = file.suffix.lower()
    if accepted_suffix and suffix == accepted_suffix:
        return None
    try:
        if not file.is_file():
            # A file that was there when the folder was listed is a row, and reading it says that it is gone.
            is_gone = not file.is_symlink() and not file.exists()
            return None if is_gone else BROKEN_LINK if file.is_symlink() else SPECIAL_FILE
        head = b"" if suffix else read_file_head(file)
    except OSError:  # opening it later reports the error
        return None
    return skip_reason_by_content(file.name, head)


def skip_reason_by_content(name: str, head: bytes) -> str | None:
    """Why a regular file is skipped: words for `describe_skipped`, or its suffix; None: a picture that can be read.

    Args:
        name: its suffix tells the format.
        head: the first bytes of the file, which tell it if there is no suffix.
    """
    from idefics.processing.picture_files import readable_formats

    suffix = PurePosixPath(name).suffix.lower()
    format = image_format_by_suffix(name) if suffix else detect_image_format(head)
    if format in readable_formats():
        return None
    if format is not None:
        return (MISSING_EXTRA if format.extra else UNREADABLE_FORMAT).format(
            title=format.title, extra=format.extra
        )
    is_video = suffix in VIDEO_SUFFIXES or detect_video_format(head) is not None
    return VIDEO if is_video else suffix or "no suffix"


def describe_skipped(skipped: Counter[str]) -> str:
    """The skipped files on one line: "2 camera RAW (not read: convert to JPEG), 1 other file (.txt)"."""
    parts, num_by_suffix = [], Counter[str]()
    for reason, count in sorted(skipped.items(), key=lambda item: item[0] != SUBFOLDER):
        if reason.startswith("{count}"):
            plural, them = ("", "it") if count == 1 else ("s", "them")
            parts.append(reason.format(count=count, s=plural, them=them))
        else:
            num_by_suffix[reason] += count
    if num_by_suffix:
        count = num_by_suffix.total()
        kinds = ", ".join(sorted(num_by_suffix)[:5]) + (", ..." if len(num_by_suffix) > 5 else "")
        parts.append(f"{count} other file{'' if count == 1 else 's'} ({kinds})")
    return ", ".join(parts)


def archive_skip_reason(name: str, read_head: Callable[[], bytes]) -> str | None:
    """Why a file in an archive is skipped, as `skip_reason`; "": it is hidden. Videos are not skipped.

    Args:
        read_head: returns the first bytes of the file; called if its name has no suffix.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts):
        return ""
    reason = skip_reason_by_content(path.name, b"" if path.suffix else read_head())
    return None if reason == VIDEO else reason
