"""The classes of Idefics2, with and without its head."""

from __future__ import annotations

from idefics.compat.configuration_inline import Idefics2Config
from idefics.compat.modeling_inline import (
    InlineImageBaseModel,
    InlineImageForConditionalGeneration,
    InlineImagePreTrainedModel,
)
from idefics.compat.modeling_outputs import Idefics2BaseModelOutputWithPast, Idefics2CausalLMOutputWithPast
from idefics.models.idefics2 import Idefics2Backbone


class Idefics2PreTrainedModel(InlineImagePreTrainedModel):
    """The base of Idefics2's classes: inherit from it to build a model with parts of your own."""

    config_class = Idefics2Config
    model_types = ("idefics2",)


class Idefics2Model(InlineImageBaseModel, Idefics2PreTrainedModel, Idefics2Backbone):
    """Idefics2 without its head: text and images to hidden states."""

    output_class = Idefics2BaseModelOutputWithPast
    backbone_class = Idefics2Backbone


class Idefics2ForConditionalGeneration(InlineImageForConditionalGeneration, Idefics2PreTrainedModel):
    """Idefics2 with its head: continues text with images of native size."""

    output_class = Idefics2CausalLMOutputWithPast
    base_class = Idefics2Model
