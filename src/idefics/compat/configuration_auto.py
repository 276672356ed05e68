"""The class of a config, by its model_type."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from idefics.compat.configuration import PretrainedConfig, read_config
from idefics.compat.configuration_idefics import IdeficsConfig
from idefics.compat.configuration_inline import Idefics2Config, Idefics3Config, SmolVLMConfig
from idefics.compat.loading_arguments import IGNORED_MODEL_KWARGS, config_to_dict, drop_neutral_model_kwargs
from idefics.compat.pretrained_folder import resolve_pretrained_folder
from idefics.errors import BadSetting
from idefics.models import family_for

CONFIG_CLASS_BY_MODEL_TYPE: dict[str, type[PretrainedConfig]] = {
    config.model_type: config for config in (IdeficsConfig, Idefics2Config, Idefics3Config, SmolVLMConfig)
}


class AutoConfig:
    """`AutoConfig.from_pretrained(...)` gives the config of a checkpoint, as the class of its model_type."""

    def __init__(self) -> NoReturn:
        raise TypeError("AutoConfig is not made by itself: call AutoConfig.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        **keywords: Any,
    ) -> PretrainedConfig:
        """The config of a folder, a hub id or a short name; keywords are as in models' `from_pretrained`."""
        folder, changes = resolve_pretrained_folder(
            pretrained_model_name_or_path,
            drop_neutral_model_kwargs("AutoConfig.from_pretrained", keywords),
            ignored=IGNORED_MODEL_KWARGS,
            needs="config",
        )
        return read_config_as_class(folder, **changes)

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> PretrainedConfig:
        """A config of this model_type."""
        family_for(model_type)  # or an error that lists what can be run
        return CONFIG_CLASS_BY_MODEL_TYPE[model_type](**fields)


def as_config(config: object, **changes: Any) -> PretrainedConfig:
    """A config from whatever says one, with other values in some fields.

    Args:
        config: a config of this package (kept as it is where nothing changes) or of transformers, the content of a
            config.json, or the folder or config.json of a checkpoint.

    Raises:
        BadSetting: it is none of these.
        UnsupportedModel: it is of a model_type that this package does not run.
    """
    if isinstance(config, str | PathLike):
        path = Path(config)
        return read_config_as_class(path.parent if path.is_file() else path, **changes)
    if isinstance(config, PretrainedConfig) and not changes:
        return config
    content = config_to_dict(config)
    if content is None:
        raise BadSetting(
            f"config is of type {type(config).__name__}; give a config, the content of a config.json, or a folder"
        )
    if isinstance(config, PretrainedConfig):
        return type(config).from_dict(dict(content), **changes)
    return config_from_content(content, **changes)


def read_config_as_class(folder: Path, **changes: Any) -> PretrainedConfig:
    """The config in a folder, as the class that its model_type names."""
    return config_from_content(read_config(folder), **changes)


def config_from_content(content: Mapping[str, Any], **changes: Any) -> PretrainedConfig:
    """The config of a config.json's content, as the class that its model_type names."""
    model_type = content.get("model_type", "(none)")
    family_for(model_type)  # or an error that lists what can be run
    return CONFIG_CLASS_BY_MODEL_TYPE[model_type].from_dict(dict(content), **changes)
