"""Idefics as the guides call it: `IdeficsModel` and `IdeficsForVisionText2Text`.

B rows, T new tokens, L cached and new tokens, P images of a row, M features of an image, D' their width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from idefics.compat.configuration_idefics import IdeficsConfig
from idefics.compat.cross_attention_inputs import ImageArguments
from idefics.compat.decoder_forward import prepare_decoder_inputs, run_decoder
from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.compat.model_construction import accept_any_config_in_init, without_weight_init
from idefics.compat.modeling import BaseModelWithoutHead, ModelWithHead
from idefics.compat.modeling_idefics_base import IdeficsPreTrainedModel
from idefics.compat.modeling_outputs import (
    IdeficsBaseModelOutputWithPast,
    IdeficsCausalLMOutputWithPast,
)
from idefics.compat.modeling_vision import IdeficsVisionTransformer
from idefics.compat.training import add_output_dropout
from idefics.models.idefics1 import Idefics1, Idefics1Backbone
from idefics.nn.attention import Attn


class IdeficsModel(BaseModelWithoutHead, IdeficsPreTrainedModel, Idefics1Backbone):
    """Idefics without a head: text and images to hidden states."""

    vision_tower_class = IdeficsVisionTransformer
    output_class = IdeficsBaseModelOutputWithPast

    @accept_any_config_in_init
    def __init__(self, config: IdeficsConfig) -> None:
        Idefics1Backbone.__init__(self, config.to_model_config())
        self._finish_init(config)
        if config.dropout:
            for name, module in self.named_modules():
                if name.endswith((".self_attn", ".cross_attn", ".mlp")) and not name.startswith(
                    "vision_model"
                ):
                    add_output_dropout(module, config.dropout)
        self.freeze_relevant_params(config)

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D') image features; the vision tower may be the caller's own."""
        tower: nn.Module = self.vision_model
        # Sizes have been checked before.
        options = {"interpolate_pos_encoding": True} if isinstance(tower, IdeficsVisionTransformer) else {}
        vision_output = tower(frames, **options)
        out: Tensor = self.perceiver_resampler(
            vision_output if isinstance(vision_output, Tensor) else vision_output.last_hidden_state
        )
        return out

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder on packed tokens: embeddings (N, D), positions (N,) -> hidden states (N, D)."""
        return Idefics1Backbone.forward(self, x, positions, attn)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_encoder_embeddings: Tensor | None = None,
        perceiver_embeddings: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = False,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Computes the hidden states of a batch; arguments as in `IdeficsForVisionText2Text.forward`.

        Returns:
            IdeficsBaseModelOutputWithPast, or with `return_dict=False` the tuple of its values.
        """
        options = self._resolve_forward_options(
            use_cache, output_attentions, output_hidden_states, return_dict
        )
        inputs = prepare_decoder_inputs(
            self.embed, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        images = ImageArguments(
            pixel_values,
            image_encoder_embeddings,
            perceiver_embeddings,
            image_attention_mask,
            bool(interpolate_pos_encoding),
        )
        features = None
        if inputs.past.has_read_images:
            cross_attention_inputs = images.cached_cross_attention_inputs(inputs)
        else:
            features = images.image_features(self, self.config.vision_config.image_size)
            cross_attention_inputs = (
                None if features is None else images.cross_attention_inputs(self, features, inputs)
            )
        result = run_decoder(
            self.forward_packed,
            list(self.layers),
            inputs,
            options,
            cross_attention_inputs,
            backend=self.attention_backend,
            dropout_p=self.config.dropout if self.training else 0.0,
        )
        return self._make_output(result, inputs.past, features, options)


class IdeficsForVisionText2Text(IdeficsPreTrainedModel, ModelWithHead, Idefics1):  # type: ignore[misc]
    """Idefics with its head: continues text with images.

    Args:
        vision_model: in place of the vision tower; None: the one that the config describes.
    """

    output_class = IdeficsCausalLMOutputWithPast
    model: IdeficsModel

    @accept_any_config_in_init
    def __init__(self, config: IdeficsConfig, vision_model: nn.Module | None = None) -> None:
        with without_weight_init():
            body = IdeficsModel(config)
        Idefics1.__init__(self, config.to_model_config(), body)
        self._finish_init(config)
        if config.freeze_lm_head:
            self.lm_head.weight.requires_grad_(False)
        if vision_model is not None:
            self.model.vision_model = vision_model  # type: ignore[assignment]

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder on packed tokens: embeddings (N, D), positions (N,) -> hidden states (N, D)."""
        return self.model.forward_packed(x, positions, attn)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_encoder_embeddings: Tensor | None = None,
        perceiver_embeddings: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = False,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Computes the logits of a batch, and the loss where there are labels.

        Args:
            input_ids, inputs_embeds: (B, T) ids, or (B, T, D) embeddings in their place.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None: no padding.
            position_ids: (B, T); None: counted from `attention_mask`.
            past_key_values: the cache of an earlier pass, its images included; or (keys, values) for each layer.
            pixel_values, ..., image_attention_mask, interpolate_pos_encoding: as in `ImageArguments`.
            labels: (B, T) token ids, -100 where there is no loss.
            use_cache, output_attentions, output_hidden_states, return_dict: None: as the config says.
            logits_to_keep: logits of so many last tokens, or of those whose indices a tensor holds; 0: of all.
            num_items_in_batch: divides the summed loss; None: the loss is the mean.

        Returns:
            IdeficsCausalLMOutputWithPast, or with `return_dict=False` the tuple of its values.
        """
        options = self._resolve_forward_options(
            use_cache, output_attentions, output_hidden_states, return_dict
        )
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_encoder_embeddings=image_encoder_embeddings,
            perceiver_embeddings=perceiver_embeddings,
            image_attention_mask=image_attention_mask,
            use_cache=options.use_cache,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
        )
        return self._make_output_with_logits(
            out, options, labels, attention_mask, logits_to_keep, num_items_in_batch
        )
