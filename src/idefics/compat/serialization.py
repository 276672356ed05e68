"""Configs and settings as dicts and as JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import copy
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from idefics.errors import BrokenCheckpoint, UnsupportedModel
from idefics.processing import checkpoint_settings
from idefics.weights.files import refuse_adapter

StrPath = str | os.PathLike[str]


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

    def to_json_string(self, use_diff: bool = True) -> str:
        """The content as JSON, two spaces a level, names in alphabetical order.

        It always has all fields: `use_diff` is accepted as configs of transformers have it.
        """
        return to_json(self.to_dict())

    def to_json_file(self, json_file_path: StrPath, use_diff: bool = True) -> None:
        """Writes `to_json_string` to a file, whatever its name."""
        write_json(Path(json_file_path), self.to_dict())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


class AnnotatedFields(JsonMixin):
    """An object whose fields are the annotated names of its class that have a default.

    The constructor sets each field, and keeps other keyword arguments as attributes too. Two objects are equal where
    their `to_dict` is.

    Attributes:
        fields: field -> default; those of the class first, then inherited ones.
    """

    fields: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        """Collects the fields of the class, which are its constructor's arguments."""
        own_fields = {
            name: vars(cls)[name]
            for name, annotation in cls.__annotations__.items()
            if name in vars(cls) and name != "model_type" and "ClassVar" not in str(annotation)
        }
        cls.fields = {**own_fields, **cls.fields, **own_fields}  # the second time for their values
        parameters = [
            Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value)
            for name, value in cls.fields.items()
        ]
        kwargs_parameter = Parameter("kwargs", Parameter.VAR_KEYWORD)
        cls.__signature__ = Signature([*parameters, kwargs_parameter])  # type: ignore[attr-defined]

    def __init__(self, *values: Any, **named: Any) -> None:
        arguments = signature(type(self)).bind(*values, **named).arguments
        extra_fields = arguments.pop("kwargs", {})
        for name, value in {**self.fields, **arguments, **extra_fields}.items():
            setattr(self, name, copy(value))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], **changes: Any) -> Self:
        """Makes an object of the content of its JSON file; `changes` are fields with another value."""
        return cls(**{**content, **changes})

    @classmethod
    def from_json_file(cls, json_file: StrPath) -> Self:
        """Reads an object from a JSON file, whatever the file's name."""
        return cls.from_dict(read_json_object(Path(json_file)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnnotatedFields) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it can be changed


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
    if not path.exists():
        refuse_adapter(path.parent)
        raise BrokenCheckpoint(f"{path.parent} has no {path.name}: give the folder of a checkpoint")
    try:
        return checkpoint_settings.read_json_object(path)
    except UnsupportedModel as error:
        raise BrokenCheckpoint(str(error)) from None


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """Writes a JSON file, in a folder that is created where it does not exist. Returns the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(content), encoding="utf-8")
    return str(path)


def to_json(content: Mapping[str, Any]) -> str:
    """A dict as indented JSON, names in alphabetical order; values that JSON does not have become strings."""
    return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
