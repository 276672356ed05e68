"""Where the files of a checkpoint are read from and written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics import weights
from idefics.catalog import resolve

if TYPE_CHECKING:
    import os


def folder_of(model: str | os.PathLike[str], *, revision: str | None, local_files_only: bool) -> Path:
    """The folder of a checkpoint, weights left aside, or of a processor or tokenizer that was saved alone.

    Args:
        model: a folder, a hub id ("owner/name") or a short name ("demo").
        revision: branch, tag or commit on the hub.
        local_files_only: never use the network; False asks IDEFICS_OFFLINE and HF_HUB_OFFLINE.

    Raises:
        ModelNotFound: as `idefics.weights.find`.
    """
    folder = Path(model).expanduser()
    saved = any((folder / name).is_file() for name in ("tokenizer.json", "preprocessor_config.json"))
    if saved and revision is None and resolve(str(model)) is None:
        return folder
    return weights.find(model, revision=revision, offline=local_files_only or None, weights=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A small file as people can read it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
