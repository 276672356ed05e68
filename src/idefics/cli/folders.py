"""Finds the pictures in folders and by patterns: each file once; skipped files are counted by reason.

Files are judged by their suffix; only a file without a suffix is opened.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from idefics.errors import BadPicture
from idefics.formats import (
    IMAGE_FORMATS,
    VIDEO_SUFFIXES,
    detect_image_format,
    detect_video_format,
    image_format_by_suffix,
)

MAX_PATTERN_LENGTH = 100  # characters of a pattern that an error message shows


class PictureSearch:
    """Finds the pictures of one folder or pattern.

    Args:
        recursive: whether subfolders are searched too.
        report_error: called with a message for each subfolder that cannot be read.

    Attributes:
        skipped: number of files left out, by reason: a format, a suffix, "video", "link", ...
    """

    def __init__(self, *, recursive: bool, report_error: Callable[[str], None]) -> None:
        self.recursive, self.report_error = recursive, report_error
        self.skipped: Counter[str] = Counter()
        self._seen_paths: set[str] = set()  # real paths

    def find_in_folder(self, folder: Path) -> list[Path]:
        """The pictures in a folder, sorted by path.

        Raises:
            BadPicture: the folder cannot be read or has no picture.
        """
        paths = list(
            self._filter_pictures(self._walk_files(folder) if self.recursive else self._list_files(folder))
        )
        if not paths:
            raise BadPicture(f"{folder}: no picture in this folder{self._skipped_text()}")
        return sorted(paths)

    def find_by_pattern(self, pattern: str) -> list[Path]:
        """The pictures that match a pattern, sorted by path; `**` matches any number of folders.

        A file whose suffix is written out in the pattern (`*.dat`) counts as a picture.

        Raises:
            BadPicture: no file matches.
        """
        suffix = Path(pattern).suffix.lower()
        accepted_suffix = None if glob.has_magic(suffix) else suffix
        paths = sorted(self._filter_pictures(self._expand_pattern(pattern), accepted_suffix))
        if not paths:
            kind = "picture" if self.skipped else "file"
            raise BadPicture(
                f"{pattern[:MAX_PATTERN_LENGTH]}: no {kind} matches this pattern{self._skipped_text()}"
            )
        return paths

    def _skipped_text(self) -> str:
        """The skipped files as the end of an error message; empty if there are none."""
        return f"; skipped: {describe_skipped(self.skipped)}" if self.skipped else ""

    def _expand_pattern(self, pattern: str) -> Iterator[Path]:
        """Yields the files that match a pattern, and the files of folders that match it."""
        parts = Path(pattern).parts
        if "**" not in parts:
            for match in map(Path, sorted(glob.glob(pattern))):
                if _false_on_os_error(match.is_dir):
                    yield from self._walk_files(match) if self.recursive else self._list_files(match)
                else:
                    yield match
            return
        wildcard_index = parts.index("**")
        root_folders = sorted(glob.glob(str(Path(*parts[:wildcard_index])))) if wildcard_index else ["."]
        for root in map(Path, root_folders):
            for file in self._walk_files(root):
                if _matches_pattern(file.relative_to(root).parts, parts[wildcard_index:]):
                    yield file

    def _list_files(self, folder: Path) -> Iterator[Path]:
        """Yields the files of a folder, and counts its subfolders as skipped."""
        for entry in _visible_entries(folder):
            if _false_on_os_error(entry.is_dir):
                self.skipped["subfolder"] += 1
            else:
                yield entry

    def _walk_files(self, root: Path) -> Iterator[Path]:
        """All files below a folder. Each folder is searched once, even if several symbolic links lead to it."""
        folders, links, searched = deque([root]), deque[Path](), set[str]()
        while folders or links:
            folder = (folders or links).popleft()
            real_path = os.path.realpath(folder)
            if real_path in searched or (
                folder is not root and Path(real_path) in Path(os.path.realpath(root)).parents
            ):
                continue  # a link to a folder that was searched already, or to a parent of the root
            searched.add(real_path)
            try:
                entries = _visible_entries(folder)
            except BadPicture as error:
                if folder is root:
                    raise
                self.report_error(str(error))
                continue
            for entry in entries:
                if _false_on_os_error(entry.is_dir):
                    (links if _false_on_os_error(entry.is_symlink) else folders).append(entry)
                else:
                    yield entry

    def _filter_pictures(self, files: Iterator[Path], accepted_suffix: str | None = None) -> Iterator[Path]:
        """Yields the files that are pictures by their names, each once, and counts the others in `skipped`.

        Args:
            files: the files; regular files come before links, so that a link to one of them is left out.
            accepted_suffix: files with this suffix are pictures in any case.
        """
        from idefics.processing.picture_files import readable_formats

        formats = readable_formats()
        for file in sorted(files, key=lambda file: (_false_on_os_error(file.is_symlink), file)):
            suffix = file.suffix.lower()
            reason = (
                None if accepted_suffix and suffix == accepted_suffix else _skip_reason(file, suffix, formats)
            )
            real_path = os.path.realpath(file)
            if reason is None and real_path in self._seen_paths:
                reason = "link"
            if reason is None:
                self._seen_paths.add(real_path)
                yield file
            else:
                self.skipped[reason] += 1


def _visible_entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted; hidden ones are left out."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BadPicture(f"{folder} cannot be read: {error.strerror}") from None


def _false_on_os_error(predicate: Callable[[], bool]) -> bool:
    """Calls a test such as `path.is_dir`; False where the path may not be read."""
    try:
        return predicate()
    except OSError:
        return False


def _skip_reason(file: Path, suffix: str, readable_formats: Sequence[object]) -> str | None:
    """Why a file is skipped: its format, "video", "broken link" or its suffix; None for a picture."""
    from idefics.processing.picture_files import read_file_head

    try:
        if not file.is_file():
            return "broken link" if file.is_symlink() else "special file"
        head = b"" if suffix else read_file_head(file)
        format = image_format_by_suffix(file.name) if suffix else detect_image_format(head)
    except OSError:  # opening it later reports the error
        return None
    if format is not None:
        return None if format in readable_formats else format.title
    is_video = suffix in VIDEO_SUFFIXES or detect_video_format(head) is not None
    return "video" if is_video else suffix or "no suffix"


def _matches_pattern(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a relative path matches a pattern with `**`, both as parts, by the rules of `glob`."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(_matches_pattern(parts[start:], pattern[1:]) for start in range(len(parts)))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _matches_pattern(parts[1:], pattern[1:])


def describe_skipped(skipped: Counter[str]) -> str:
    """The skipped files on one line: "2 camera RAW (not read: convert to JPEG), 1 other file (.txt)"."""
    format_by_title = {one.title: one for one in IMAGE_FORMATS}
    parts, num_by_suffix = [], Counter[str]()
    for reason, count in skipped.items():
        plural = "" if count == 1 else "s"
        if reason == "subfolder":
            parts.append(f"{count} subfolder{plural} (--recursive includes {'it' if count == 1 else 'them'})")
        elif reason == "video":
            parts.append(f"{count} video{plural} (to include one, name it)")
        elif reason in ("link", "broken link", "special file"):
            what = (
                f"link{plural} to a picture that is included anyway"
                if reason == "link"
                else f"{reason}{plural}"
            )
            parts.append(f"{count} {what}")
        elif reason.startswith(".") or reason == "no suffix":
            num_by_suffix[reason] += count
        elif reason in format_by_title and format_by_title[reason].extra:
            parts.append(
                f"{count} {reason} (pip install 'idefics[{format_by_title[reason].extra}]', or convert to JPEG)"
            )
        else:
            parts.append(f"{count} {reason} (not read: convert to JPEG)")
    if num_by_suffix:
        count = num_by_suffix.total()
        kinds = ", ".join(sorted(num_by_suffix)[:5]) + (", ..." if len(num_by_suffix) > 5 else "")
        parts.append(f"{count} other file{'' if count == 1 else 's'} ({kinds})")
    return ", ".join(parts)
