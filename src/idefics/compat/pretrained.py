"""`from_pretrained` of models, configs, processors, image processors and tokenizers; settings as dicts and JSON files.

It refuses what this package does not have, finds the folder, and leaves to each class what is read there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from idefics import weights
from idefics.catalog import find_entry
from idefics.compat.keyword_arguments import (
    IGNORED_KWARGS,
    IGNORED_MODEL_KWARGS,
    IGNORED_PROCESSOR_KWARGS,
    NEUTRAL_MODEL_KWARGS,
    NeutralKwargs,
    check_and_drop_neutral_kwargs,
    split_kwargs,
)
from idefics.errors import BadSetting, BrokenCheckpoint, UnsupportedModel
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


HUB_KWARGS = ("revision", "local_files_only", "subfolder", "token", "use_auth_token", "cache_dir")


@dataclass(frozen=True, slots=True)
class FileSelection:
    """The files that a class reads, and the keyword arguments of its `from_pretrained` that have no effect.

    Attributes:
        ignored: names of arguments that are dropped.
        neutral: arguments that are accepted at some values only.
        needs_weights: whether weights are downloaded too, or only the small files.
        sufficient_files: a folder with one of these need not hold a checkpoint, as the object was saved alone.
    """

    ignored: Sequence[str]
    neutral: NeutralKwargs = field(default_factory=dict)
    needs_weights: bool = False
    sufficient_files: tuple[str, ...] = ()


MODEL_FILES = FileSelection(IGNORED_MODEL_KWARGS, NEUTRAL_MODEL_KWARGS, needs_weights=True)
CONFIG_FILES = FileSelection(IGNORED_MODEL_KWARGS, NEUTRAL_MODEL_KWARGS)
GENERATION_CONFIG_FILES = FileSelection(IGNORED_KWARGS, sufficient_files=("generation_config.json",))
PROCESSOR_FILES = FileSelection(
    IGNORED_PROCESSOR_KWARGS, sufficient_files=("tokenizer.json", "preprocessor_config.json")
)


class PretrainedMixin:
    """Gives a class `from_pretrained`, which reads an object from the files of a checkpoint.

    Attributes:
        file_selection: the files that are read, and the arguments that have no effect.
    """

    file_selection: ClassVar[FileSelection]

    @classmethod
    def _from_folder(cls, folder: Path, **settings: Any) -> Self:
        """Reads the files of a folder; `settings` take the place of those in the files."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> Self:
        """Reads the object from the files of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, a hub id ("owner/name") or a short name ("9b-instruct").
            kwargs: which files are meant: `revision`, `local_files_only`, `subfolder` of a folder, `token` and
                `cache_dir`; arguments of transformers that have no effect here (`keyword_arguments` lists them); and
                settings of the class with other values than in the files.

        Raises:
            ModelNotFound: no such folder or model, or it cannot be downloaded.
            BrokenCheckpoint, UnsupportedModel: files cannot be read, or are of another class.
            BadSetting: an argument asks for something that this package does not have.
            UnknownArgument: the class has no such setting.
        """
        folder, settings = resolve_folder_and_settings(
            cls.__name__, pretrained_model_name_or_path, kwargs, cls.file_selection
        )
        return cls._from_folder(folder, **settings)


class AutoClass:
    """A class that is never constructed: its `from_pretrained` returns an object of the class that fits the files."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not constructed: call {name}.from_pretrained(...)")


def resolve_folder_and_settings(
    class_name: str, model: StrPath, kwargs: Mapping[str, Any], selection: FileSelection
) -> tuple[Path, dict[str, Any]]:
    """Finds the folder that `from_pretrained` reads, downloading it where needed.

    Args:
        class_name: the class that was called, for messages.
        model: a folder, a hub id ("owner/name") or a short name ("demo").
        kwargs: the caller's keyword arguments. Of these, `HUB_KWARGS` choose the files: `revision`, a branch, tag or
            commit on the hub ("main" is accepted for folders too); `local_files_only`, never use the network;
            `subfolder` of a folder; `token` (or `use_auth_token`) for private models; `cache_dir`, where downloads
            are kept.

    Returns:
        The folder, and the keyword arguments that remain.

    Raises:
        BadSetting: an argument asks for something that this package does not have, another revision than "main" of a
            folder, or a subfolder on the hub.
        ModelNotFound: as `idefics.weights.find_checkpoint`.
    """
    kwargs = check_and_drop_neutral_kwargs(f"{class_name}.from_pretrained", kwargs, selection.neutral)
    _, settings = split_kwargs(kwargs, (*HUB_KWARGS, *selection.ignored))
    folder, revision = Path(model).expanduser(), kwargs.get("revision")
    subfolder, cache, token = kwargs.get("subfolder"), kwargs.get("cache_dir"), kwargs.get("token")
    if folder.is_dir() and find_entry(str(model)) is None:
        model = folder = folder / (subfolder or "")
        revision = None if revision == "main" else revision
        if revision is None and any((folder / name).is_file() for name in selection.sufficient_files):
            return folder, settings
    elif subfolder:
        raise BadSetting(
            f"subfolder is {subfolder!r}, but {model} is not a folder: download it with `hf download {model}`, "
            "and give the folder"
        )
    found = weights.find_checkpoint(
        model,
        revision=revision,
        offline=kwargs.get("local_files_only") or None,
        needs_weights=selection.needs_weights,
        token=kwargs.get("use_auth_token") if token is None else token,
        cache=None if cache is None else Path(cache).expanduser(),
    )
    return found, settings
