"""`AutoConfig`, and configs of any kind as the class for their model_type."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from idefics.compat import configuration_idefics, configuration_inline  # noqa: F401  # fill the table of classes
from idefics.compat.configuration import CONFIG_CLASS_BY_MODEL_TYPE, CONFIG_FILE, PretrainedConfig
from idefics.compat.pretrained import (
    CONFIG_FILES,
    AutoClass,
    StrPath,
    config_to_dict,
    read_json_object,
    resolve_folder_and_settings,
)
from idefics.errors import BadSetting
from idefics.models import family_for


class AutoConfig(AutoClass):
    """`AutoConfig.from_pretrained(...)` returns the config of a checkpoint, as the class for its model_type."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> PretrainedConfig:
        """Reads config.json; arguments and errors as in `PretrainedMixin.from_pretrained`."""
        folder, fields = resolve_folder_and_settings(
            cls.__name__, pretrained_model_name_or_path, kwargs, CONFIG_FILES
        )
        return as_config(folder, **fields)

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> PretrainedConfig:
        """A config of a model_type with these fields, defaults elsewhere; raises UnsupportedModel for unknown types."""
        family_for(model_type)  # raises an error that lists the known ones
        return CONFIG_CLASS_BY_MODEL_TYPE[model_type](**fields)


def as_config(config: object, **changes: Any) -> PretrainedConfig:
    """A config of this package from whatever callers give, with other values in some fields.

    Args:
        config: a config of this package (kept as it is where nothing changes) or of transformers, the content of a
            config.json, or the folder or config.json of a checkpoint.

    Raises:
        BadSetting: it is none of these.
        UnsupportedModel: it is of a model_type that this package does not run.
    """
    content: Mapping[str, Any] | None
    if isinstance(config, str | PathLike):
        path = Path(config)
        content = read_json_object(path if path.is_file() else path / CONFIG_FILE)
    elif isinstance(config, PretrainedConfig):
        return type(config).from_dict(config.to_dict(), **changes) if changes else config
    elif (content := config_to_dict(config)) is None:
        raise BadSetting(
            f"config is of type {type(config).__name__}; give a config, the content of a config.json, or a folder"
        )
    model_type = content.get("model_type", "(none)")
    family_for(model_type)  # raises an error that lists the known ones
    return CONFIG_CLASS_BY_MODEL_TYPE[model_type].from_dict(content, **changes)
