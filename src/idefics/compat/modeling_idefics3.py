"""The classes of Idefics3, SmolVLM and SmolVLM2, with and without their heads."""

from __future__ import annotations

from typing import ClassVar

from idefics.compat.configuration_inline import Idefics3Config, SmolVLMConfig
from idefics.compat.modeling_heads import BaseModelWithoutHead
from idefics.compat.modeling_inline import (
    InlineImageBaseModel,
    InlineImageForConditionalGeneration,
    InlineImagePreTrainedModel,
)
from idefics.compat.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    Idefics3BaseModelOutputWithPast,
    Idefics3CausalLMOutputWithPast,
    SmolVLMBaseModelOutputWithPast,
    SmolVLMCausalLMOutputWithPast,
)
from idefics.models.idefics3 import Idefics3Backbone


class Idefics3PreTrainedModel(InlineImagePreTrainedModel):
    """The base of Idefics3's classes: inherit from it to build a model with parts of your own."""

    config_class = Idefics3Config
    model_types = ("idefics3", "smolvlm")  # one architecture


class Idefics3Model(InlineImageBaseModel, Idefics3PreTrainedModel, Idefics3Backbone):
    """Idefics3 without its head: text and images to hidden states."""

    output_class: ClassVar[type[BaseModelOutputWithPast]] = Idefics3BaseModelOutputWithPast
    backbone_class = Idefics3Backbone
    requires_square_frames = True


class Idefics3ForConditionalGeneration(InlineImageForConditionalGeneration, Idefics3PreTrainedModel):
    """Idefics3 with its head: continues text with images split into square tiles."""

    output_class: ClassVar[type[CausalLMOutputWithPast]] = Idefics3CausalLMOutputWithPast
    base_class: ClassVar[type[BaseModelWithoutHead]] = Idefics3Model


class SmolVLMPreTrainedModel(Idefics3PreTrainedModel):
    """The base of the classes of SmolVLM and SmolVLM2."""

    config_class = SmolVLMConfig


class SmolVLMModel(SmolVLMPreTrainedModel, Idefics3Model):
    """SmolVLM or SmolVLM2 without its head: text and images to hidden states."""

    output_class = SmolVLMBaseModelOutputWithPast


class SmolVLMForConditionalGeneration(SmolVLMPreTrainedModel, Idefics3ForConditionalGeneration):
    """SmolVLM or SmolVLM2 with its head: continues text with images and video frames."""

    output_class = SmolVLMCausalLMOutputWithPast
    base_class = SmolVLMModel
