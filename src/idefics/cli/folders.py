"""Finds the pictures in folders and by patterns: each file once; skipped files are counted by reason.

Files are judged by their suffix; only a file without a suffix is opened.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from idefics.errors import BadPicture
from idefics.formats import (
    VIDEO_SUFFIXES,
    detect_image_format,
    detect_video_format,
    image_format_by_suffix,
)

MAX_PATTERN_LENGTH = 100  # characters of a pattern that an error message shows

# Why files are skipped, as `describe_skipped` says it; a file of another kind is counted by its suffix.
SUBFOLDER = "{count} subfolder{s} (--recursive includes {them})"
VIDEO = "{count} video{s} (to include one, name it)"
DUPLICATE_LINK = "{count} link{s} to a picture that is included anyway"
BROKEN_LINK = "{count} broken link{s}"
SPECIAL_FILE = "{count} special file{s}"
MISSING_EXTRA = "{{count}} {title} (pip install 'idefics[{extra}]', or convert to JPEG)"
UNREADABLE_FORMAT = "{{count}} {title} (not read: convert to JPEG)"


@dataclass(kw_only=True)
class PictureSearch:
    """Finds the pictures of one folder or pattern.

    Attributes:
        recursive: whether subfolders are searched too.
        report_error: called with a message for each subfolder that cannot be read.
        skipped: number of files left out, by reason: `VIDEO`, `BROKEN_LINK`, a suffix, ...
    """

    recursive: bool
    report_error: Callable[[str], None]
    skipped: Counter[str] = field(default_factory=Counter)
    _seen_paths: set[str] = field(default_factory=set)  # real paths

    def find(self, argument: str, *, is_pattern: bool) -> list[Path]:
        """The pictures in a folder, or those that match a pattern, sorted by path.

        In a pattern `**` matches any number of folders. A file whose suffix is written out in the pattern (`*.dat`)
        counts as a picture.

        Raises:
            BadPicture: the folder cannot be read or has no picture, or no file matches.
        """
        path, suffix = Path(argument), ""
        if is_pattern and not glob.has_magic(path.suffix):
            suffix = path.suffix.lower()
        files = (
            self._expand_pattern(argument) if is_pattern else self._files_in(path, recursive=self.recursive)
        )
        if paths := sorted(self._filter_pictures_and_count_skipped(files, suffix)):
            return paths
        skipped = f"; skipped: {describe_skipped(self.skipped)}" if self.skipped else ""
        if not is_pattern:
            raise BadPicture(f"{path}: no picture in this folder{skipped}")
        kind = "picture" if self.skipped else "file"
        raise BadPicture(f"{argument[:MAX_PATTERN_LENGTH]}: no {kind} matches this pattern{skipped}")

    def _expand_pattern(self, pattern: str) -> Iterator[Path]:
        """Yields the files that match a pattern, and the files of folders that match it."""
        parts = Path(pattern).parts
        if "**" not in parts:
            for match in map(Path, sorted(glob.glob(pattern))):
                if is_folder(match):
                    yield from self._files_in(match, recursive=self.recursive)
                else:
                    yield match
            return
        wildcard_index = parts.index("**")
        root_folders = sorted(glob.glob(str(Path(*parts[:wildcard_index])))) if wildcard_index else ["."]
        for root in map(Path, root_folders):
            for file in self._files_in(root, recursive=True):
                if _matches_pattern(file.relative_to(root).parts, parts[wildcard_index:]):
                    yield file

    def _files_in(self, root: Path, *, recursive: bool) -> Iterator[Path]:
        """Yields the files of a folder, hidden ones left out; with `recursive` those of its subfolders too.

        Subfolders that are not searched count as skipped. Each folder is searched once, even if several symbolic links
        lead to it.
        """
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
                entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
            except OSError as error:
                message = f"{folder} cannot be read: {error.strerror}"
                if folder is root:
                    raise BadPicture(message) from None
                self.report_error(message)
                continue
            for entry in entries:
                if not is_folder(entry):
                    yield entry
                elif recursive:
                    (links if _is_link(entry) else folders).append(entry)
                else:
                    self.skipped[SUBFOLDER] += 1

    def _filter_pictures_and_count_skipped(
        self, files: Iterator[Path], accepted_suffix: str
    ) -> Iterator[Path]:
        """Yields the files that are pictures by their names, each once, and counts the others in `skipped`.

        Args:
            files: the files; regular files come before links, so that a link to one of them is left out.
            accepted_suffix: files with this suffix are pictures in any case; "": none are.
        """
        from idefics.processing.picture_files import readable_formats

        formats = readable_formats()
        for file in sorted(files, key=lambda file: (_is_link(file), file)):
            suffix = file.suffix.lower()
            is_accepted = accepted_suffix != "" and suffix == accepted_suffix
            reason = None if is_accepted else _skip_reason(file, suffix, formats)
            real_path = os.path.realpath(file)
            if reason is None and real_path in self._seen_paths:
                reason = DUPLICATE_LINK
            if reason is None:
                self._seen_paths.add(real_path)
                yield file
            else:
                self.skipped[reason] += 1


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder; False where it may not be read, or cannot be a path."""
    return os.path.isdir(path)  # noqa: PTH112  # Path.is_dir raises PermissionError


def _is_link(path: Path) -> bool:
    """Whether a path is a symbolic link; False where it may not be read."""
    return os.path.islink(path)  # noqa: PTH114  # Path.is_symlink raises PermissionError


def _skip_reason(file: Path, suffix: str, readable_formats: Sequence[object]) -> str | None:
    """Why a file is skipped: words for `describe_skipped`, or its suffix; None: it is a picture that can be read."""
    from idefics.processing.picture_files import read_file_head

    try:
        if not file.is_file():
            return BROKEN_LINK if file.is_symlink() else SPECIAL_FILE
        head = b"" if suffix else read_file_head(file)
        format = image_format_by_suffix(file.name) if suffix else detect_image_format(head)
    except OSError:  # opening it later reports the error
        return None
    if format in readable_formats:
        return None
    if format is not None:
        return (MISSING_EXTRA if format.extra else UNREADABLE_FORMAT).format(
            title=format.title, extra=format.extra
        )
    is_video = suffix in VIDEO_SUFFIXES or detect_video_format(head) is not None
    return VIDEO if is_video else suffix or "no suffix"


def _matches_pattern(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a relative path matches a pattern in which `**` stands for any folders, by the rules of `glob`.

    Args:
        parts, pattern: the path and the pattern, split at the slashes.
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(_matches_pattern(parts[start:], pattern[1:]) for start in range(len(parts)))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _matches_pattern(parts[1:], pattern[1:])


def describe_skipped(skipped: Counter[str]) -> str:
    """The skipped files on one line: "2 camera RAW (not read: convert to JPEG), 1 other file (.txt)"."""
    parts, num_by_suffix = [], Counter[str]()
    for reason, count in skipped.items():
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
