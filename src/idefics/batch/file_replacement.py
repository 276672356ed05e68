"""Replaces a file as a whole: the new content is written to a temporary file in the same folder, which is then renamed.

A program that is killed at any moment leaves the old file or the new one, never a part of one; it may leave the
temporary file, a hidden one whose name ends in `TEMPORARY_SUFFIX`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from idefics.errors import BadRequest

TEMPORARY_SUFFIX = ".idefics-tmp"


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """The new content of a file, complete on the disk in a temporary file; end it with `commit` or `discard`.

    Attributes:
        path: the file that `commit` replaces; where a symbolic link was named, its target.
        temporary: the file with the new content, in the same folder.
        sha256: SHA-256 of the new content, in hexadecimal digits.
        original: the state of the file that is replaced; None if there is none yet.
    """

    path: Path
    temporary: Path
    sha256: str
    original: os.stat_result | None

    def commit(self) -> None:
        """Renames the temporary file to `path`, and waits until that is on the disk.

        Raises:
            BadRequest: the file has changed since `original` was read, or it cannot be replaced; it is left as it
                was, and the temporary file is removed.
        """
        try:
            if not _is_unchanged(self.path, self.original):
                raise BadRequest(
                    f"{self.path} was changed by another program: it is left as it is; try again"
                )
            self.temporary.replace(self.path)
        except BadRequest:
            self.discard()
            raise
        except OSError as error:
            self.discard()
            raise unwritable_file_error(self.path, error) from error
        _sync_folder(self.path.parent)

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
        keeps_times: it has the times of last access and change of the existing file, too.

    Raises:
        BadRequest: it cannot be written: it is a folder, a broken link or read-only, the folder cannot be written, or
            the disk is full (`__cause__` is the OSError).
    """
    temporary = None
    try:
        target = find_target(path)
        if original is None and target.exists():
            original = target.stat()
        if original is not None and not original.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            raise BadRequest(f"{path} is read-only: allow writing, or keep it out of the run")
        temporary = target.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        with temporary.open("xb") as file:
            if original is not None:
                _copy_attributes(target, original, temporary)
            file.write(content)
            file.flush()
            if original is not None and keeps_times:
                os.utime(temporary, ns=(original.st_atime_ns, original.st_mtime_ns))
            os.fsync(file.fileno())
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        raise unwritable_file_error(path, error) from error
    return PreparedFile(target, temporary, sha256(content).hexdigest(), original)


def find_target(path: Path) -> Path:
    """The file that a path names, with symbolic links followed; it need not exist.

    Raises:
        BadRequest: it is a folder, a device, or a symbolic link to nothing.
        OSError: it cannot be reached.
    """
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not target.exists():
        raise BadRequest(f"{path} is a symbolic link to {target}, which does not exist: remove the link")
    if target.exists() and not target.is_file():
        raise BadRequest(f"{path} is a {'folder' if target.is_dir() else 'device'}, not a file: rename it")
    return target


def unwritable_file_error(path: Path, error: OSError) -> BadRequest:
    """The error that says in one line why a file cannot be written."""
    return BadRequest(f"{path} cannot be written: {(error.strerror or str(error)).lower()}")


def _is_unchanged(path: Path, original: os.stat_result | None) -> bool:
    """Whether a file is still in the state `original`; None: it did not exist."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return original is None
    return original is not None and (now.st_size, now.st_mtime_ns) == (original.st_size, original.st_mtime_ns)


def _copy_attributes(source: Path, original: os.stat_result, target: Path) -> None:
    """Gives a file the owner, permissions and extended attributes of another."""
    if sys.platform != "win32":
        with suppress(PermissionError):  # only root gives files away
            os.chown(target, original.st_uid, original.st_gid)
    shutil.copystat(source, target)


def _sync_folder(folder: Path) -> None:
    """Waits until the names of a folder's files are on the disk, where the file system can do that."""
    if sys.platform != "win32":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
