"""The classes of the inline-image models: Idefics2, Idefics3, SmolVLM and SmolVLM2, with and without their heads.

B rows, T new tokens, L cached and new tokens, P frames (images or tiles) of a row, M features of a frame, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from idefics.compat.configuration_inline import Idefics2Config, Idefics3Config, SmolVLMConfig
from idefics.compat.inline_images import encode_frames, merge_image_features
from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.compat.modeling import PreTrainedModel
from idefics.compat.modeling_heads import BaseModelWithoutHead, ModelWithHead, make_forward_with_head
from idefics.compat.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
    Idefics2BaseModelOutputWithPast,
    Idefics2CausalLMOutputWithPast,
    Idefics3BaseModelOutputWithPast,
    Idefics3CausalLMOutputWithPast,
    SmolVLMBaseModelOutputWithPast,
    SmolVLMCausalLMOutputWithPast,
    prepare_decoder_inputs,
    record_module_outputs,
)
from idefics.compat.modeling_vision import SiglipVisionTransformer
from idefics.errors import BadPrompt
from idefics.models.idefics2 import Idefics2Backbone
from idefics.models.idefics3 import Idefics3Backbone
from idefics.models.vision_language_model import InlineImageBackbone


class InlineImageBaseModel(BaseModelWithoutHead, InlineImageBackbone):
    """An inline-image model without a head: text and images to hidden states."""

    config: Idefics2Config | Idefics3Config
    vision_tower_class = SiglipVisionTransformer
    requires_square_frames: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # The row of the padding token is not trained, as in transformers.
        self.text_model.embed_tokens.padding_idx = self.config.text_config.pad_token_id

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes images: (P, 3, h, w) normalised pixels -> (P, M, D) image features."""
        out: Tensor = self.connector(self.vision_model(frames).last_hidden_state)
        return out

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images.

        Args:
            pixel_values: (B, P, 3, h, w); frames of only zeros are padding.
            pixel_attention_mask: (B, P, h, w), 1 for pixels and 0 for padding; None: no padding.
            return_dict: False returns a tuple.

        Returns:
            BaseModelOutputWithPooling: `pooler_output` has for each row the (features, D) that replace its image
            tokens; `last_hidden_state` (P, S, D') of the vision tower, where all frames have one size.
        """
        with record_module_outputs([self.vision_model]) as vision_outputs:
            features, frames_per_row = encode_frames(self, pixel_values, pixel_attention_mask)
        features_by_row = (
            []
            if features is None
            else features.flatten(0, 1).split([count * features.shape[1] for count in frames_per_row])
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=vision_outputs[0].last_hidden_state if len(vision_outputs) == 1 else None,
            pooler_output=list(features_by_row),
        ).as_return_type(return_dict)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Computes the hidden states of a batch.

        Args:
            input_ids: (B, T), with `image_token_id` for each image feature; or in their place `inputs_embeds`,
                (B, T, D), with the embedding of that token.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None: no padding.
            position_ids: (B, T); None: counted from `attention_mask`.
            past_key_values: the cache of an earlier pass, its images included; or (keys, values) for each layer.
            pixel_values: (B, P, 3, h, w); frames of only zeros are padding.
            pixel_attention_mask: (B, P, h, w), 1 for pixels and 0 for padding; None: no padding.
            image_hidden_states: (frames, M, D) image features of an earlier pass, in place of images.
            use_cache, output_attentions, output_hidden_states, return_dict: None: as the config says.
            cache_position: of no effect: `past_key_values` says how many tokens are cached.

        Returns:
            BaseModelOutputWithPast, or with `return_dict=False` the tuple of its values.

        Raises:
            BadPrompt: arguments contradict each other, or there are more or fewer image tokens than features.
        """
        inputs = prepare_decoder_inputs(
            self.embed, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        flags = use_cache, output_attentions, output_hidden_states, return_dict
        features = None
        if not inputs.past.has_read_images:
            features = image_hidden_states
            if pixel_values is not None:
                if features is not None:
                    raise BadPrompt("give either pixel_values or image_hidden_states, and not both")
                features, _ = encode_frames(self, pixel_values, pixel_attention_mask)
            inputs = merge_image_features(self, inputs, features)
        return self._run_decoder(inputs, flags, features)


class InlineImageForConditionalGeneration(ModelWithHead):
    """An inline-image model with its head. `model` is the model without it."""

    config: Idefics2Config | Idefics3Config
    model: InlineImageBaseModel
    forward = make_forward_with_head(InlineImageBaseModel.forward)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """The id of the placeholder of an image feature."""
        return (self.config.image_token_id,)

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images, as `get_image_features` of the model without its head."""
        return self.model.get_image_features(pixel_values, pixel_attention_mask, return_dict)


class Idefics2PreTrainedModel(PreTrainedModel):
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


class Idefics3PreTrainedModel(PreTrainedModel):
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
