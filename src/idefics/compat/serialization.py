"""Configs and settings as dicts and as JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from idefics.errors import BrokenCheckpoint
from idefics.weights.adapters import refuse_adapter


@runtime_checkable
class HasToDict(Protocol):
    """An object that gives its content as a dict: configs of this package and of transformers."""

    def to_dict(self) -> dict[str, Any]:
        """The fields of the object by their names, as in its JSON file."""
        ...


class JsonMixin:
    """Writes an object to JSON, as its `to_dict` says."""

    def to_dict(self) -> dict[str, Any]:
        """The content of the JSON file, to be defined by the class."""
        raise NotImplementedError

    def to_json_string(self) -> str:
        """The content as JSON, two spaces a level, names in alphabetical order."""
        return to_json(self.to_dict())

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes `to_json_string` to a file, whatever its name."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def config_to_dict(config: object) -> Mapping[str, Any] | None:
    """The content of a config object or of a mapping; None for anything else."""
    if isinstance(config, HasToDict):
        return config.to_dict()
    return config if isinstance(config, Mapping) else None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BrokenCheckpoint: there is no such file, it is not JSON, or not an object.
        UnsupportedModel: there is no such file, and the folder holds an adapter.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse_adapter(path.parent)
        raise BrokenCheckpoint(f"{path.parent} has no {path.name}: give the folder of a checkpoint") from None
    except (OSError, ValueError) as error:
        raise BrokenCheckpoint(
            f"{path} cannot be read as JSON ({type(error).__name__}): download it again"
        ) from None
    if not isinstance(content, dict):
        raise BrokenCheckpoint(f"{path} is not a JSON object: download it again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """Writes a JSON file, in a folder that is created where it does not exist. Returns the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(content), encoding="utf-8")
    return str(path)


def to_json(content: Mapping[str, Any]) -> str:
    """A dict as indented JSON, names in alphabetical order; values that JSON does not have become strings."""
    return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
