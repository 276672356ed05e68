"""Writes a folder under another name and renames it, so that it exists completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from idefics.errors import BadSetting, IdeficsError


def nearest_existing(folder: Path) -> Path:
    """A folder, or the nearest path above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Raises BadSetting if a folder cannot be written or made; leaves nothing behind."""
    try:
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=nearest_existing(folder)):
            pass
    except OSError as error:
        raise BadSetting(f"{folder} cannot be written ({error.strerror}): give another folder") from None


@contextmanager
def write_whole_folder(
    folder: Path, advice: str = "make room there, or give another folder"
) -> Iterator[Path]:
    """Context with a temporary folder, which becomes `folder` at the end; after an error there is none.

    Args:
        advice: what to do if it cannot be written.

    Raises:
        BadSetting: `folder` is not empty, or cannot be written, also where safetensors' library finds the disk full.
    """
    from safetensors import SafetensorError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSetting(f"{folder} already holds other files: give a new folder, or empty it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
            temporary = Path(name)
            yield temporary
            temporary.chmod(0o755)  # temporary files are readable by their owner only
            for file in temporary.iterdir():
                file.chmod(0o644)
            temporary.replace(folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, IdeficsError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise BadSetting(f"{folder} cannot be written ({reason}): {advice}") from None
