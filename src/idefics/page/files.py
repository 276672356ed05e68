"""Writes files that the browser downloads or shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gradio.utils import get_upload_folder

from idefics.page.uploaded_picture import UploadedPicture


def save_file(data: bytes, name: str) -> UploadedPicture:
    """Saves bytes under a file name, in a folder named by their SHA-256, which nobody can guess without the bytes."""
    folder = Path(get_upload_folder()) / hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return UploadedPicture(str(path), name)
