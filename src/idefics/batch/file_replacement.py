"""Replaces a file as a whole: the new content is written to a temporary file in the same folder, which is then renamed.

A program that is killed at any moment leaves the old file or the new one, never a part of one. It may leave the
temporary file, a hidden one: `.idefics-*.tmp`.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from idefics.errors import IdeficsError, OutputError

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """The new content of a file, complete on the disk in a temporary file; end it with `commit` or `discard`.

    Attributes:
        path: the file that `commit` replaces; where a symbolic link was named, its target.
        temporary: the file with the new content, in the same folder.
        sha256: SHA-256 of the new content, 32 bytes.
        original: the state of the file that is replaced; None if there is none yet.
    """

    path: Path
    temporary: Path
    sha256: bytes
    original: os.stat_result | None

    def commit(self) -> None:
        """Renames the temporary file to `path`, and returns once that is on the disk.

        Raises:
            OutputError: the file has changed since `original`, or cannot be replaced. It is left as it was, and the
                temporary file is removed.
        """
        try:
            with report_os_errors(self.path):
                if not _is_unchanged(self.path, self.original):
                    raise OutputError(f"cannot write {self.path}: another program has changed it: run again")
                self.temporary.replace(self.path)
        except OutputError:
            self.discard()
            raise
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Removes the temporary file."""
        with suppress(OSError):
            self.temporary.unlink()


def prepare_file(
    path: Path, content: bytes, *, original: os.stat_result | None = None, keeps_times: bool = False
) -> PreparedFile:
    """Writes the new content of a file, which may exist, to a temporary file.

    The temporary file has the permissions and extended attributes of the existing file and, as far as this process may
    set it, its owner.

    Args:
        path: the file to write; of a symbolic link, the target.
        content: all bytes of the new file.
        original: the state that the file had when it was read; default: its state now.
        keeps_times: the temporary file has the times of last access and change of the existing file, too.

    Raises:
        OutputError: it cannot be written: it is a folder, a broken link or read-only, the folder cannot be written, or
            the disk is full.
    """
    with report_os_errors(path):
        target = find_target(path)
        if original is None and target.exists():
            original = target.stat()
        if original is not None and not original.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            raise OutputError(f"cannot write {path}: it is read-only: allow writing, or leave it out")

        def write(file: BinaryIO) -> None:
            if original is not None:
                if sys.platform != "win32":
                    with suppress(PermissionError):  # only root gives files away
                        os.chown(Path(file.name), original.st_uid, original.st_gid)
                shutil.copystat(target, file.name)
            file.write(content)
            file.flush()
            if original is not None and keeps_times:
                os.utime(file.name, ns=(original.st_atime_ns, original.st_mtime_ns))

        temporary = write_temporary(path, target, write)
    return PreparedFile(target, temporary, sha256(content).digest(), original)


def write_temporary(path: Path, target: Path, write: Callable[[BinaryIO], None]) -> Path:
    """Writes a temporary file in a folder; if anything is raised meanwhile, it is removed.

    Args:
        path: the file that is written, as messages name it.
        target: the same with symbolic links followed; the temporary file is in its folder.
        write: writes the content to a file.

    Returns:
        The temporary file, once its content is on the disk.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = target.with_name(f".idefics-{secrets.token_hex(8)}.tmp")
    try:
        with report_os_errors(path), temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def find_target(path: Path) -> Path:
    """The file that a path names, with symbolic links followed; it need not exist.

    Raises:
        OutputError: it is a folder, a device, or a symbolic link to nothing.
        OSError: it cannot be reached.
    """
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not target.exists():
        raise OutputError(f"cannot write {path}: it is a link to {target}, which does not exist: remove it")
    if target.exists() and not target.is_file():
        kind = "folder" if target.is_dir() else "device"
        raise OutputError(f"cannot write {path}: it is a {kind}: rename or remove it")
    return target


def sync_folder(folder: Path) -> None:
    """Returns once the names of a folder's files are on the disk, where the file system can say so."""
    if sys.platform != "win32":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def report_os_errors(path: Path) -> Iterator[None]:
    """Raises OutputError in place of OSError; an `IdeficsError` is left alone.

    Writing is enclosed apart from the removal of unfinished content, so that the free bytes are those of the failure.

    Args:
        path: the file that is written.
    """
    try:
        yield
    except IdeficsError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in FULL_DISK_ERRORS:
            what = "disk full" if error.errno == errno.ENOSPC else reason
            free = shutil.disk_usage(path.parent).free
            reason = (
                f"{what} ({free:,} bytes free): make room and run the same command again; nothing is lost"
            )
        raise OutputError(f"cannot write {path}: {reason}") from error


def _is_unchanged(path: Path, original: os.stat_result | None) -> bool:
    """Whether a file is still in the state `original`; None: it did not exist."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return original is None
    return original is not None and (now.st_size, now.st_mtime_ns) == (original.st_size, original.st_mtime_ns)
