"""The class of a config, by its model_type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idefics.compat.configuration import PretrainedConfig, read_config
from idefics.compat.configuration_idefics import IdeficsConfig
from idefics.compat.configuration_in_text import Idefics2Config, Idefics3Config, SmolVLMConfig
from idefics.models import family_for

CONFIGS: dict[str, type[PretrainedConfig]] = {
    config.model_type: config for config in (IdeficsConfig, Idefics2Config, Idefics3Config, SmolVLMConfig)
}


def config_of(folder: Path, **changes: Any) -> PretrainedConfig:
    """The config in a folder, as the class that its model_type names."""
    content = read_config(folder)
    model_type = content.get("model_type", "(none)")
    family_for(model_type)  # or an error that lists what can be run
    return CONFIGS[model_type].from_dict(content, **changes)
