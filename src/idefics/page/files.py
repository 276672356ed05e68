"""Files that the page writes for a browser to read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gradio.utils import get_upload_folder

from idefics.page.uploaded_picture import UploadedPicture


def save_file(data: bytes, name: str) -> UploadedPicture:
    """Bytes as a file of a given name; its folder cannot be guessed by who does not know them."""
    folder = Path(get_upload_folder()) / hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return UploadedPicture(str(path), name)
