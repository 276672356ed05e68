"""The class that finds the class."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NoReturn

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.configuration_auto import config_from
from idefics.compat.folders import folder_and_rest
from idefics.compat.loading_arguments import IGNORED_BY_MODELS
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
        raise TypeError(f"{type(self).__name__} is never made: call its from_pretrained or from_config")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        config: PretrainedConfig | Mapping[str, Any] | str | PathLike[str] | None = None,
        **options: Any,
    ) -> ModelWithHead:
        """As `from_pretrained` of the class that config.json's model_type names."""
        folder, options = folder_and_rest(
            pretrained_model_name_or_path, options, ignored=IGNORED_BY_MODELS, needs="weights"
        )
        found = config_from(folder if config is None else config)
        options |= {} if config is None else {"config": found}
        model = CLASSES[found.model_type].from_pretrained(folder, **options)
        model.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def from_config(cls, config: PretrainedConfig | Mapping[str, Any], **options: Any) -> ModelWithHead:
        """As `from_config` of the class that the config is for."""
        found = config_from(config)
        return CLASSES[found.model_type].from_config(found, **options)


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """`AutoModelForImageTextToText` by its name in transformers 4."""
