"""Finds the pictures in folders and by patterns, a folder at a time: each file once; skipped files are counted.

Files are judged by their suffix; only a file without a suffix is opened.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from idefics.batch.sources.skipped import (
    DUPLICATE,
    DUPLICATE_LINK,
    SUBFOLDER,
    IncludedFiles,
    describe_skipped,
    skip_reason,
)
from idefics.errors import BadPicture

MAX_PATTERN_LENGTH = 100  # characters of a pattern that an error message shows


@dataclass(kw_only=True)
class PictureSearch:
    """Finds the pictures of folders and patterns.

    Attributes:
        recursive: whether subfolders are searched too.
        report_error: called with the path of each subfolder that cannot be read, and a message.
        skipped: number of files left out, by reason: `VIDEO`, `BROKEN_LINK`, a suffix, ...
        included: the files that were found before, here or by other searches, which are left out.
    """

    recursive: bool
    report_error: Callable[[Path, str], None]
    skipped: Counter[str] = field(default_factory=Counter)
    included: IncludedFiles = field(default_factory=IncludedFiles)

    def find(self, argument: str, *, is_pattern: bool) -> Iterator[Path]:
        """Yields the pictures in a folder, or those that match a pattern: folder by folder, sorted in each.

        In a pattern `**` matches any number of folders. A file whose suffix is written out in the pattern (`*.dat`)
        counts as a picture. Hidden files are left out, and a link is if the file that it leads to is included.

        Raises:
            BadPicture: the folder cannot be read.
        """
        if not is_pattern:
            yield from self._search_folder(Path(argument))
            return
        path = Path(argument)
        suffix = "" if glob.has_magic(path.suffix) else path.suffix.lower()
        if "**" in path.parts:
            index = path.parts.index("**")
            roots = sorted(glob.glob(str(Path(*path.parts[:index])))) if index else ["."]
            for root in map(Path, roots):
                yield from _TreeSearch(self, root, path.parts[index:], suffix).files()
            return
        for parent in map(Path, sorted(glob.glob(str(path.parent)))):
            if is_folder(parent):
                search = _TreeSearch(self, parent, (path.name,), suffix)
                yield from search.files()
                for subfolder in search.subfolders:
                    yield from self._search_folder(subfolder)

    def nothing_found_error(self, argument: str, *, is_pattern: bool) -> BadPicture:
        """The error for a folder or pattern for which `find` yields nothing; it counts the skipped files."""
        skipped = f"; skipped: {describe_skipped(self.skipped)}" if self.skipped else ""
        if not is_pattern:
            return BadPicture(f"{Path(argument)}: no picture in this folder{skipped}")
        kind = "picture" if self.skipped else "file"
        return BadPicture(f"{argument[:MAX_PATTERN_LENGTH]}: no {kind} matches this pattern{skipped}")

    def _search_folder(self, folder: Path) -> Iterator[Path]:
        """Yields the pictures in a folder, and with `recursive` those in its subfolders."""
        search = _TreeSearch(self, folder, ("**",) if self.recursive else ("*",), "")
        yield from search.files()
        if search.subfolders:
            self.skipped[SUBFOLDER] += len(search.subfolders)


@dataclass(eq=False)
class _TreeSearch:
    """The search of one folder, and of its subfolders if the pattern begins with `**`.

    Attributes:
        search: what is skipped is counted there.
        root: the folder.
        pattern: what paths below `root` match, split at the slashes.
        suffix: files with this suffix count as pictures; "": only pictures do.
    """

    search: PictureSearch
    root: Path
    pattern: Sequence[str]
    suffix: str

    def __post_init__(self) -> None:
        self.real_root = os.path.realpath(self.root)
        self.subfolders: list[Path] = []  # those that match a pattern without `**`, and are not searched

    def files(self) -> Iterator[Path]:
        """Yields the pictures. Each folder is searched once, even if several symbolic links lead to it."""
        folders, links, searched = [self.root], list[Path](), set[str]()
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            real_path = os.path.realpath(folder)
            if real_path in searched or (
                folder is not self.root and Path(real_path) in Path(self.real_root).parents
            ):
                continue  # a link to a folder that was searched already, or to a parent of the root
            searched.add(real_path)
            subfolders = list[Path]()
            try:
                yield from self._files_in(folder, real_path, subfolders)
            except OSError as error:
                message = f"{folder} cannot be read: {error.strerror}"
                if folder is self.root:
                    raise BadPicture(message) from None
                self.search.report_error(folder, message)
            if self.pattern[0] == "**":
                folders += [one for one in reversed(subfolders) if not _is_link(one)]
                links += [one for one in subfolders if _is_link(one)]
            else:
                self.subfolders = [one for one in subfolders if fnmatch(one.name, self.pattern[-1])]

    def _files_in(self, folder: Path, real_folder: str, subfolders: list[Path]) -> Iterator[Path]:
        """Yields the pictures that a folder itself holds: files, then links. Appends its subfolders to a list."""
        name_pattern = self._name_pattern(folder.relative_to(self.root).parts)
        links = []
        for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names take less memory than paths
            path = folder / name
            if name.startswith(".") and not self.pattern[-1].startswith("."):
                continue
            if is_folder(path):
                subfolders.append(path)
            elif name_pattern is not None and fnmatch(name, name_pattern):
                if _is_link(path):
                    links.append(path)
                elif self._is_included(path, f"{real_folder}{os.sep}{name}"):
                    yield path
        for path in links:
            if self._is_included(path, os.path.realpath(path)):
                yield path
        if name_pattern is not None:
            self.search.included.add_folder(real_folder, name_pattern, self.suffix)

    def _name_pattern(self, folder_parts: Sequence[str]) -> str | None:
        """The pattern of the files in a folder, given by its path below the root; None if they do not match."""
        if self.pattern[-1] == "**":
            return "*" if _matches_pattern(folder_parts, self.pattern) else None
        return self.pattern[-1] if _matches_pattern(folder_parts, self.pattern[:-1]) else None

    def _is_included(self, path: Path, real_path: str) -> bool:
        """Whether a file is a picture that was not found before; otherwise counts it as skipped."""
        reason, included = skip_reason(path, self.suffix), self.search.included
        if reason is None and _is_link(path):
            if self._will_find(real_path) or not included.add(real_path):
                reason = DUPLICATE_LINK
        elif reason is None and real_path in included:
            reason = DUPLICATE
        if reason is not None:
            self.search.skipped[reason] += 1
        return reason is None

    def _will_find(self, real_path: str) -> bool:
        """Whether this search finds a file by its real path, where a link leads."""
        if not Path(real_path).is_relative_to(self.real_root):
            return False
        *folders, name = Path(real_path).relative_to(self.real_root).parts
        if any(part.startswith(".") for part in (*folders, name)):
            return False
        name_pattern = self._name_pattern(folders)
        is_match = name_pattern is not None and fnmatch(name, name_pattern)
        return is_match and skip_reason(Path(real_path), self.suffix) is None


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder; False where it may not be read, or cannot be a path."""
    return os.path.isdir(path)  # noqa: PTH112  # Path.is_dir raises PermissionError


def is_unexpanded_pattern(argument: str) -> bool:
    """Whether an argument is a pattern that the shell has not expanded."""
    from idefics.processing.fetch import is_url

    return glob.has_magic(argument) and not path_exists(argument) and not is_url(argument)


def path_exists(name: str) -> bool:
    """Whether a file or folder exists; False for an argument that cannot be a path."""
    return os.path.exists(name)  # noqa: PTH110  # Path.exists raises OSError or ValueError


def _is_link(path: Path) -> bool:
    """Whether a path is a symbolic link; False where it may not be read."""
    return os.path.islink(path)  # noqa: PTH114  # Path.is_symlink raises PermissionError


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
        return any(_matches_pattern(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _matches_pattern(parts[1:], pattern[1:])
