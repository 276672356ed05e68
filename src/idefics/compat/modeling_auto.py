"""The classes that find the class."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.configuration_auto import as_config
from idefics.compat.loading_arguments import IGNORED_MODEL_KWARGS
from idefics.compat.modeling import ModelWithHead, PreTrainedModel
from idefics.compat.modeling_adapters import accept_adapter_folder
from idefics.compat.modeling_idefics import IdeficsForVisionText2Text, IdeficsModel
from idefics.compat.modeling_idefics2 import Idefics2ForConditionalGeneration, Idefics2Model
from idefics.compat.modeling_idefics3 import (
    Idefics3ForConditionalGeneration,
    Idefics3Model,
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
)
from idefics.compat.pretrained_folder import resolve_pretrained_folder

MODEL_CLASS_BY_TYPE: dict[str, type[ModelWithHead]] = {
    "idefics": IdeficsForVisionText2Text,
    "idefics2": Idefics2ForConditionalGeneration,
    "idefics3": Idefics3ForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
}
BASE_MODEL_CLASS_BY_TYPE: dict[str, type[PreTrainedModel]] = {
    "idefics": IdeficsModel,
    "idefics2": Idefics2Model,
    "idefics3": Idefics3Model,
    "smolvlm": SmolVLMModel,
}


class _AutoClass:
    """What they share: `model_class_by_type` says which model_type is of which class."""

    model_class_by_type: ClassVar[Mapping[str, type[PreTrainedModel]]]

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is never made: call its from_pretrained or from_config")

    @classmethod
    @accept_adapter_folder
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        config: PretrainedConfig | Mapping[str, Any] | str | PathLike[str] | None = None,
        **options: Any,
    ) -> Any:
        """As `from_pretrained` of the class that config.json's model_type names."""
        folder, options = resolve_pretrained_folder(
            pretrained_model_name_or_path, options, ignored=IGNORED_MODEL_KWARGS, needs="weights"
        )
        resolved_config = as_config(folder if config is None else config)
        options |= {} if config is None else {"config": resolved_config}
        model = cls.model_class_by_type[resolved_config.model_type].from_pretrained(folder, **options)
        model.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def from_config(cls, config: PretrainedConfig | Mapping[str, Any], **options: Any) -> Any:
        """As `from_config` of the class that the config is for."""
        resolved_config = as_config(config)
        return cls.model_class_by_type[resolved_config.model_type].from_config(resolved_config, **options)


class AutoModel(_AutoClass):
    """The model without a head that a checkpoint or a config is of."""

    model_class_by_type = BASE_MODEL_CLASS_BY_TYPE


class AutoModelForImageTextToText(_AutoClass):
    """The model with a head that a checkpoint or a config is of."""

    model_class_by_type = MODEL_CLASS_BY_TYPE


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """`AutoModelForImageTextToText` by its name in transformers 4."""
