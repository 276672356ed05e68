"""A picture that the browser has sent."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics.errors import BadPicture

FilePayload = Mapping[str, Any]  # a file as the browser knows it; "orig_name" is what the person calls it


@dataclass(frozen=True, slots=True)
class UploadedPicture:
    """Where its file is, and what the person calls it: the file's name, or the address it came from."""

    path: str
    name: str

    @classmethod
    def from_payload(cls, payload: FilePayload | None) -> UploadedPicture:
        """What a component holds; BadPicture where that is nothing."""
        if not payload or not payload.get("path"):
            raise BadPicture("there is no picture yet: drop one, paste one, or take one of the examples")
        return cls(payload["path"], payload.get("orig_name") or Path(payload["path"]).name)

    @property
    def to_payload(self) -> FilePayload:
        """It, as components take it where nothing is done to what a handler returns (`postprocess=False`)."""
        mime_type, _ = mimetypes.guess_type(self.path)
        meta = {"_type": "gradio.FileData"}
        return {"path": self.path, "orig_name": self.name, "mime_type": mime_type, "meta": meta}
