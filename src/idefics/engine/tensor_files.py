"""Files of computed tensors, which later processes read instead of computing them again.

One safetensors file for each key, in a folder that only its owner can open. Without access to the folder nothing is
stored, and nothing fails.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

log = logging.getLogger(__name__)

FREE_SPACE_FACTOR = 10  # a file is not written unless the disk has free space for so many of its size
DIGEST_NAME = "digest"  # of the tensor with the SHA-256 of the key and of the other tensors


@dataclass(frozen=True)
class TensorFileCache:
    """The files of what one model has computed. Several processes may use one folder at the same time.

    Attributes:
        folder: made when the first file is stored, for its owner alone; not used if it is another user's.
        model_key: a text of everything about the model that the tensors depend on.
        max_bytes: if all files in the folder are larger together, the least recently used ones are deleted.
    """

    folder: Path
    model_key: str
    max_bytes: int

    def load(self, key: str) -> list[Tensor] | None:
        """The tensors that were stored under a key; None if it has no valid file.

        A file that is damaged, or was not written by this class for this key, is deleted.
        """
        tensors, file = None, self._file(key)
        with suppress(OSError):  # no such file, or no access
            if self._is_private():
                tensors = _parse_tensors(_read_own_file(file), self._full_key(key))
                if tensors is None:
                    log.debug("%s is damaged or was not written by idefics: it is deleted", file)
                    file.unlink()
                else:
                    os.utime(file)  # the time of its last use
        return tensors

    def store(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Writes tensors, on the CPU, under a key, and deletes the least recently used files if there are too many.

        The file appears when it is complete; if it cannot be written, or the disk is nearly full, nothing is stored.
        """
        from safetensors.torch import save

        named_tensors = {str(index): tensor.contiguous() for index, tensor in enumerate(tensors)}
        digest = _compute_digest(self._full_key(key), list(named_tensors.values()))
        content = save({**named_tensors, DIGEST_NAME: torch.tensor(list(digest), dtype=torch.uint8)})
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_private():
                if self._has_space(len(content)):
                    _write_whole(self._file(key), content)
                self._delete_least_recently_used()
        except OSError as error:
            log.debug("nothing is stored in %s: %s", self.folder, error)

    def _full_key(self, key: str) -> str:
        """The key with the model's: equal ones mean equal tensors."""
        return f"{self.model_key} {key}"

    def _file(self, key: str) -> Path:
        """The path of the file for a key."""
        return self.folder / f"{hashlib.sha256(self._full_key(key).encode()).hexdigest()}.safetensors"

    def _has_space(self, num_bytes: int) -> bool:
        """Whether a file of this size is within `max_bytes` and leaves the disk most of its free space."""
        free_bytes = shutil.disk_usage(self.folder).free
        return num_bytes <= self.max_bytes and free_bytes >= FREE_SPACE_FACTOR * num_bytes

    def _is_private(self) -> bool:
        """Whether the folder belongs to this user; if so, other users' access to it is removed.

        Raises:
            OSError: the folder does not exist, or is open to others and this cannot be changed.
        """
        status = self.folder.stat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            log.debug("%s is not a folder of this user: nothing is stored", self.folder)
            return False
        if status.st_mode & 0o077:
            self.folder.chmod(0o700)
        return True

    def _delete_least_recently_used(self) -> None:
        """Deletes files, the least recently used first, until all files together have at most `max_bytes`."""
        files = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process has deleted it
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        num_bytes = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if num_bytes <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            num_bytes -= size


def _read_own_file(path: Path) -> bytes:
    """The content of a file; b"" if it is not a regular file of this user."""
    status = path.lstat()
    is_own_file = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    return path.read_bytes() if is_own_file else b""


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read: under a temporary name, then renamed, so that it is always complete.

    The temporary file is removed if that fails or is interrupted.

    Raises:
        OSError: the file cannot be written.
    """
    with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as temporary:
        try:
            temporary.write(content)
            temporary.flush()
            Path(temporary.name).replace(path)
        except BaseException:  # Ctrl-C too
            Path(temporary.name).unlink()
            raise


def _parse_tensors(content: bytes, key: str) -> list[Tensor] | None:
    """The tensors in a file's content; None if they are not those that were stored under `key`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        named_tensors = load(content)
        digest = named_tensors.pop(DIGEST_NAME)
        tensors = [named_tensors[str(index)] for index in range(len(named_tensors))]
    except (SafetensorError, KeyError, ValueError):
        return None
    return tensors if digest.tolist() == list(_compute_digest(key, tensors)) else None


def _compute_digest(key: str, tensors: Sequence[Tensor]) -> bytes:
    """SHA-256 of a key, and of the dtypes, shapes and values of contiguous tensors on the CPU."""
    digest = hashlib.sha256(key.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.digest()
