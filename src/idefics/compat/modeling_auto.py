"""The class that finds the class."""

from __future__ import annotations

from os import PathLike
from typing import Any, NoReturn

from idefics import weights
from idefics.compat.configuration import PretrainedConfig
from idefics.compat.configuration_auto import config_of
from idefics.compat.modeling import ModelWithHead
from idefics.compat.modeling_idefics import IdeficsForVisionText2Text
from idefics.compat.modeling_in_text import (
    Idefics2ForConditionalGeneration,
    Idefics3ForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)

CLASSES: dict[str, type[ModelWithHead]] = {
    "idefics": IdeficsForVisionText2Text,
    "idefics2": Idefics2ForConditionalGeneration,
    "idefics3": Idefics3ForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
}


class AutoModelForImageTextToText:
    """The model with a head that a checkpoint or a config is of."""

    def __init__(self) -> NoReturn:
        raise TypeError("AutoModelForImageTextToText is never made: call its from_pretrained or from_config")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> ModelWithHead:
        """As `from_pretrained` of the class that config.json's model_type names."""
        folder = weights.find(
            pretrained_model_name_or_path, revision=revision, offline=True if local_files_only else None
        )
        model = CLASSES[config_of(folder).model_type].from_pretrained(folder, **options)
        model.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def from_config(cls, config: PretrainedConfig, **options: Any) -> ModelWithHead:
        """As `from_config` of the class that the config is for."""
        return CLASSES[config.model_type].from_config(config, **options)
