"""A picture that the browser has uploaded."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics.errors import BadPicture

# Gradio's FileData: "path", and "orig_name", the name on the person's machine.
FilePayload = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UploadedPicture:
    """A file on the server, and its name on the user's machine or the address that it was fetched from."""

    path: str
    name: str

    @classmethod
    def from_payload(cls, payload: FilePayload | None) -> UploadedPicture:
        """The picture that a component holds; raises BadPicture where it is empty."""
        if not payload or not payload.get("path"):
            raise BadPicture("no picture was given: drop or paste one, or click an example")
        return cls(payload["path"], payload.get("orig_name") or Path(payload["path"]).name)

    @property
    def payload(self) -> FilePayload:
        """The payload that a handler returns for an image component, with `postprocess=False`."""
        mime_type, _ = mimetypes.guess_type(self.path)
        meta = {"_type": "gradio.FileData"}
        return {"path": self.path, "orig_name": self.name, "mime_type": mime_type, "meta": meta}
