"""The classes of Idefics3, SmolVLM and SmolVLM2, with and without a head."""

from __future__ import annotations

from typing import ClassVar

from idefics.compat.configuration_in_text import Idefics3Config, SmolVLMConfig
from idefics.compat.construction import as_part, constructor
from idefics.compat.modeling_in_text import (
    InTextBaseModel,
    InTextForConditionalGeneration,
    InTextPreTrainedModel,
)
from idefics.compat.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    Idefics3BaseModelOutputWithPast,
    Idefics3CausalLMOutputWithPast,
    SmolVLMBaseModelOutputWithPast,
    SmolVLMCausalLMOutputWithPast,
)
from idefics.models.idefics3 import Idefics3, Idefics3Body


class Idefics3PreTrainedModel(InTextPreTrainedModel):
    """What the classes of Idefics3 share: inherit from it to put the model together with parts of your own."""

    config_class = Idefics3Config
    model_types = ("idefics3", "smolvlm")  # the same mathematics


class Idefics3Model(InTextBaseModel, Idefics3PreTrainedModel, Idefics3Body):
    """Idefics3 without a head."""

    output_class: ClassVar[type[BaseModelOutputWithPast]] = Idefics3BaseModelOutputWithPast
    reads_squares = True

    @constructor
    def __init__(self, config: Idefics3Config) -> None:
        Idefics3Body.__init__(self, config.settings())
        self._begin(config)


class Idefics3ForConditionalGeneration(InTextForConditionalGeneration, Idefics3PreTrainedModel, Idefics3):
    """Idefics3 with its head: continues text in which pictures stand, cut into squares."""

    output_class: ClassVar[type[CausalLMOutputWithPast]] = Idefics3CausalLMOutputWithPast
    base_class: ClassVar[type[Idefics3Model]] = Idefics3Model

    @constructor
    def __init__(self, config: Idefics3Config) -> None:
        with as_part():
            body = self.base_class(config)
        Idefics3.__init__(self, config.settings(), body)
        self._begin(config)


class SmolVLMPreTrainedModel(Idefics3PreTrainedModel):
    """What the classes of SmolVLM and SmolVLM2 share."""

    config_class = SmolVLMConfig


class SmolVLMModel(SmolVLMPreTrainedModel, Idefics3Model):
    """SmolVLM or SmolVLM2 without a head."""

    output_class = SmolVLMBaseModelOutputWithPast


class SmolVLMForConditionalGeneration(SmolVLMPreTrainedModel, Idefics3ForConditionalGeneration):
    """SmolVLM and SmolVLM2 with their heads."""

    output_class = SmolVLMCausalLMOutputWithPast
    base_class = SmolVLMModel
