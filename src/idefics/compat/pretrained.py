"""`from_pretrained`: one implementation for models, configs, processors, image processors and tokenizers.

It refuses what this package does not have, finds the folder, and leaves to each class what is read there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from idefics import weights
from idefics.catalog import find_entry
from idefics.compat.keyword_arguments import (
    IGNORED_KWARGS,
    IGNORED_MODEL_KWARGS,
    IGNORED_PROCESSOR_KWARGS,
    NEUTRAL_MODEL_KWARGS,
    NeutralKwargs,
    check_and_drop_neutral_kwargs,
)
from idefics.compat.serialization import StrPath
from idefics.errors import BadSetting

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

    ignored: Mapping[str, str]
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
    settings = {
        name: value
        for name, value in kwargs.items()
        if name not in HUB_KWARGS and name not in selection.ignored
    }
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
