"""The auto classes of models: the class is chosen by the model_type of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from idefics.compat.configuration import PretrainedConfig
from idefics.compat.loading import ModelFromPretrainedMixin
from idefics.compat.modeling import PreTrainedModel
from idefics.compat.modeling_heads import ModelWithHead
from idefics.compat.modeling_idefics import IdeficsForVisionText2Text
from idefics.compat.modeling_inline import (
    Idefics2ForConditionalGeneration,
    Idefics3ForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from idefics.compat.pretrained import AutoClass

MODEL_CLASS_BY_TYPE: dict[str, type[ModelWithHead]] = {
    "idefics": IdeficsForVisionText2Text,
    "idefics2": Idefics2ForConditionalGeneration,
    "idefics3": Idefics3ForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
}
BASE_MODEL_CLASS_BY_TYPE: dict[str, type[PreTrainedModel]] = {
    model_type: model_class.base_class for model_type, model_class in MODEL_CLASS_BY_TYPE.items()
}


class AutoModelLoader(AutoClass, ModelFromPretrainedMixin):
    """Base of the auto classes of models, which build the class that `model_class_by_type` has for a model_type."""

    model_class_by_type: ClassVar[Mapping[str, type[PreTrainedModel]]]

    @classmethod
    def _model_class_for(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        """The class in `model_class_by_type` for the model_type of a config."""
        return cls.model_class_by_type[config.model_type]


class AutoModel(AutoModelLoader):
    """Builds or loads the model without a head that a config or a checkpoint describes."""

    model_class_by_type = BASE_MODEL_CLASS_BY_TYPE


class AutoModelForImageTextToText(AutoModelLoader):
    """Builds or loads the model with a head that a config or a checkpoint describes."""

    model_class_by_type = MODEL_CLASS_BY_TYPE


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """`AutoModelForImageTextToText` by its name in transformers 4."""
