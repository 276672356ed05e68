"""The pictures of folders and patterns: each file once, and what is left out is counted, with the reason.

Knows folders, patterns and names of files; opens a file only where its name has no suffix.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from idefics.errors import BadPicture
from idefics.formats import IMAGE_FORMATS, VIDEO_SUFFIXES, format_named, recognised, recognised_video

LONGEST_PATTERN = 100  # characters, in messages


class PictureSearch:
    """Looks for the pictures of one folder or pattern.

    Args:
        recursive: a folder's subfolders are searched too.
        refuse: is told which subfolder cannot be read.

    Attributes:
        skipped: how many entries were left out, by the reason.
    """

    def __init__(self, *, recursive: bool, refuse: Callable[[str], None]) -> None:
        self.recursive, self.refuse = recursive, refuse
        self.skipped: Counter[str] = Counter()
        self._found: set[str] = set()  # real paths

    def in_folder(self, folder: Path) -> list[Path]:
        """The pictures of a folder, sorted.

        Raises:
            BadPicture: it cannot be read, or there are none.
        """
        paths = list(self._pictures(self._files_below(folder) if self.recursive else self._files_of(folder)))
        if not paths:
            raise BadPicture(f"{folder}: no picture in this folder{self._what_there_is()}")
        return sorted(paths)

    def matching(self, pattern: str) -> list[Path]:
        """The pictures that a pattern fits, sorted; `**` stands for any number of folders.

        A file whose suffix is written in the pattern counts as a picture, whatever it is.

        Raises:
            BadPicture: none fits.
        """
        suffix = Path(pattern).suffix.lower()
        wanted = None if glob.has_magic(suffix) else suffix
        paths = sorted(self._pictures(self._matches(pattern), wanted))
        if not paths:
            kind = "picture" if self.skipped else "file"
            raise BadPicture(
                f"{pattern[:LONGEST_PATTERN]}: no {kind} fits this pattern{self._what_there_is()}"
            )
        return paths

    def _what_there_is(self) -> str:
        return f"; skipped: {skipped_line(self.skipped)}" if self.skipped else ""

    def _matches(self, pattern: str) -> Iterator[Path]:
        parts = Path(pattern).parts
        if "**" not in parts:
            for match in map(Path, sorted(glob.glob(pattern))):
                if _is(match.is_dir):
                    yield from self._files_below(match) if self.recursive else self._files_of(match)
                else:
                    yield match
            return
        place = parts.index("**")
        tops = sorted(glob.glob(str(Path(*parts[:place])))) if place else ["."]
        for top in map(Path, tops):
            for file in self._files_below(top):
                if _fits(file.relative_to(top).parts, parts[place:]):
                    yield file

    def _files_of(self, folder: Path) -> Iterator[Path]:
        for entry in _entries(folder):
            if _is(entry.is_dir):
                self.skipped["subfolder"] += 1
            else:
                yield entry

    def _files_below(self, top: Path) -> Iterator[Path]:
        """The files of a folder and of all below it. Each folder is searched once, however many links lead to it."""
        folders, links, searched = deque([top]), deque[Path](), set[str]()
        while folders or links:
            folder = (folders or links).popleft()
            real = os.path.realpath(folder)
            if real in searched or (folder is not top and Path(real) in Path(os.path.realpath(top)).parents):
                continue  # a link to where it has been, or to a folder above all of it
            searched.add(real)
            try:
                entries = _entries(folder)
            except BadPicture as error:
                if folder is top:
                    raise
                self.refuse(str(error))
                continue
            for entry in entries:
                if _is(entry.is_dir):
                    (links if _is(entry.is_symlink) else folders).append(entry)
                else:
                    yield entry

    def _pictures(self, files: Iterator[Path], wanted: str | None = None) -> Iterator[Path]:
        """Those that are pictures by their names, each once: a link to one of them is left out.

        Args:
            wanted: a suffix of files that are taken for pictures in any case.
        """
        from idefics.processing.picture_files import readable_formats

        readable = readable_formats()
        for file in sorted(files, key=lambda file: (_is(file.is_symlink), file)):
            suffix = file.suffix.lower()
            reason = None if wanted and suffix == wanted else _reason(file, suffix, readable)
            real = os.path.realpath(file)
            if reason is None and real in self._found:
                reason = "link"
            if reason is None:
                self._found.add(real)
                yield file
            else:
                self.skipped[reason] += 1


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, but for hidden files."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BadPicture(f"{folder} cannot be read: {error.strerror}") from None


def _is(asked: Callable[[], bool]) -> bool:
    """The answer of a path's `is_...`; False where it may not be looked at."""
    try:
        return asked()
    except OSError:
        return False


def _reason(file: Path, suffix: str, readable: Sequence[object]) -> str | None:
    """Why a file is left out: its format, "video", "broken link" or its suffix; None where it is not."""
    from idefics.processing.picture_files import head_of

    try:
        if not file.is_file():
            return "broken link" if file.is_symlink() else "special file"
        head = b"" if suffix else head_of(file)
        named = format_named(file.name) if suffix else recognised(head)
    except OSError:  # not to be read: said when it is opened
        return None
    if named is not None:
        return None if named in readable else named.title
    is_video = suffix in VIDEO_SUFFIXES or recognised_video(head) is not None
    return "video" if is_video else suffix or "no suffix"


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a relative path fits a pattern that may hold `**`, as `glob` understands it."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(_fits(parts[start:], pattern[1:]) for start in range(len(parts)))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def skipped_line(skipped: Counter[str]) -> str:
    """How many entries were left out and why, as one line: "2 camera RAW (not read: convert them to JPEG)"."""
    formats = {one.title: one for one in IMAGE_FORMATS}
    parts, others = [], Counter[str]()
    for reason, count in skipped.items():
        plural = "" if count == 1 else "s"
        if reason == "subfolder":
            last = f"{count} subfolder{plural} (--recursive includes {'it' if count == 1 else 'them'})"
            parts.append(last)
        elif reason == "video":
            parts.append(f"{count} video{plural} (to include one, name it)")
        elif reason in ("link", "broken link", "special file"):
            what = (
                f"link{plural} to a picture that is found anyway" if reason == "link" else f"{reason}{plural}"
            )
            parts.append(f"{count} {what}")
        elif reason.startswith(".") or reason == "no suffix":
            others[reason] += count
        elif reason in formats and formats[reason].extra:
            parts.append(
                f"{count} {reason} (pip install 'idefics[{formats[reason].extra}]', or convert to JPEG)"
            )
        else:
            parts.append(f"{count} {reason} (not read: convert to JPEG)")
    if others:
        count = others.total()
        kinds = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
        parts.append(f"{count} other file{'' if count == 1 else 's'} ({kinds})")
    return ", ".join(parts)
