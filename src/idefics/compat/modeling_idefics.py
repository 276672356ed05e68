"""The classes of Idefics, with and without its head.

B rows, T new tokens, L cached and new tokens, P images of a row, M features of an image, D' their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from idefics.compat.configuration_idefics import IdeficsConfig
from idefics.compat.cross_attention_inputs import (
    compute_image_features,
    get_cached_cross_attention_inputs,
    make_cross_attention_inputs,
)
from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.compat.modeling import PreTrainedModel
from idefics.compat.modeling_heads import BaseModelWithoutHead, ModelWithHead, make_forward_with_head
from idefics.compat.modeling_outputs import (
    IdeficsBaseModelOutputWithPast,
    IdeficsCausalLMOutputWithPast,
    prepare_decoder_inputs,
)
from idefics.compat.modeling_vision import IdeficsVisionTransformer
from idefics.compat.training import add_output_dropout, freeze_except
from idefics.errors import BadSetting
from idefics.models.idefics1 import DecoupledHead, GatedCrossAttentionLayer, Idefics1, Idefics1Backbone
from idefics.nn.vit import ClipEmbeddings


class IdeficsPreTrainedModel(PreTrainedModel):
    """What the Idefics classes share: initial weights, resizing of the vocabulary, freezing."""

    config: IdeficsConfig
    config_class = IdeficsConfig
    model_types = ("idefics",)

    @property
    def backbone(self) -> Idefics1Backbone:
        """The model without its head, with the modules of `models.idefics1`."""
        return cast(Idefics1Backbone, self.base_model)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises the parameters of one module; those of gated layers (alphas) as the config says."""
        super()._init_weights(module)
        if isinstance(module, GatedCrossAttentionLayer):
            for alpha in (module.alpha_cross_attn, module.alpha_dense):
                _initialize_alpha(alpha, self.config)
        if isinstance(module, ClipEmbeddings):
            nn.init.normal_(module.class_embedding)

    def tie_weights(self) -> None:
        """Ties the head to the embedding where the config says so, additional tokens included."""
        super().tie_weights()
        head, embeddings = self.get_output_embeddings(), self.backbone.embed_tokens
        if (
            self.config.tie_word_embeddings
            and embeddings.num_additional_embeddings
            and isinstance(head, DecoupledHead)
        ):
            head.additional_fc.weight = embeddings.additional_embedding.weight

    @property
    def vocab_size(self) -> int:
        """The number of tokens without additional ones, as the config has it."""
        return self.config.vocab_size

    @property
    def total_vocab_size(self) -> int:
        """The number of tokens, additional ones included."""
        embeddings = self.backbone.embed_tokens
        return embeddings.num_embeddings + embeddings.num_additional_embeddings

    def _resize_vocabulary(self, size: int, *, mean_resizing: bool) -> None:
        """Resizes the matrices of additional tokens where there are any, else those of the vocabulary."""
        embeddings, head = self.backbone.embed_tokens, self.get_output_embeddings()
        if not embeddings.num_additional_embeddings:
            super()._resize_vocabulary(size, mean_resizing=mean_resizing)
            return
        num_additional = size - embeddings.num_embeddings
        if num_additional < 1:
            raise BadSetting(
                f"new_num_tokens is {size}; give more than vocab_size, "
                f"{embeddings.num_embeddings}: the additional tokens come after those"
            )
        self._resize_rows(embeddings.additional_embedding, num_additional, mean_resizing=mean_resizing)
        embeddings.num_additional_embeddings = self.config.additional_vocab_size = num_additional
        if isinstance(head, DecoupledHead):
            self._resize_rows(head.additional_fc, num_additional, mean_resizing=mean_resizing)
            head.num_additional_outputs = num_additional

    def freeze_relevant_params(self, config: IdeficsConfig | None = None) -> None:
        """Freezes the parts that a config says are frozen; never the gated layers, the resampler and additional tokens.

        Args:
            config: None: the model's own.
        """
        config = config or self.config
        if config.freeze_text_layers:
            self.backbone.embed_tokens.weight.requires_grad_(False)
            self.freeze_text_layers(config.freeze_text_module_exceptions)
        if config.freeze_vision_layers:
            self.freeze_vision_layers(config.freeze_vision_module_exceptions)

    def freeze_text_layers(self, module_exceptions: Sequence[str] = ()) -> None:
        """Freezes the decoder's layers and last norm, except modules of some classes (names in `FREEZABLE_CLASSES`)."""
        freeze_except(self.backbone.layers, module_exceptions)
        freeze_except(self.backbone.norm, module_exceptions)

    def freeze_vision_layers(self, module_exceptions: Sequence[str] = ()) -> None:
        """Freezes the vision tower, except modules of some classes (names in `FREEZABLE_CLASSES`)."""
        freeze_except(self.backbone.vision_model, module_exceptions)


class IdeficsModel(BaseModelWithoutHead, IdeficsPreTrainedModel, Idefics1Backbone):
    """Idefics without a head: text and images to hidden states."""

    vision_tower_class = IdeficsVisionTransformer
    backbone_class = Idefics1Backbone
    output_class = IdeficsBaseModelOutputWithPast

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if dropout := self.config.dropout:
            self.attention_dropout = dropout
            for name, module in self.named_modules():
                if name.endswith((".self_attn", ".cross_attn", ".mlp")) and not name.startswith(
                    "vision_model"
                ):
                    add_output_dropout(module, dropout)
        self.freeze_relevant_params()

    def encode(self, frames: Tensor, interpolate_pos_encoding: bool = True) -> Tensor:
        """Encodes images: (P, 3, h, w) normalised pixels -> (P, M, D') image features.

        Args:
            interpolate_pos_encoding: whether images may have another size than the trained one.
        """
        tower: nn.Module = self.vision_model
        options = (
            {"interpolate_pos_encoding": interpolate_pos_encoding}
            if isinstance(tower, IdeficsVisionTransformer)
            else {}
        )
        patches = tower(frames, **options)
        out: Tensor = self.perceiver_resampler(
            patches if isinstance(patches, Tensor) else patches.last_hidden_state
        )
        return out

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
        """Computes the hidden states of a batch.

        Args:
            input_ids, inputs_embeds: (B, T) ids, or (B, T, D) embeddings in their place.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None: no padding.
            position_ids: (B, T); None: counted from `attention_mask`.
            past_key_values: the cache of an earlier pass, its images included; or (keys, values) for each layer.
            pixel_values: (B, P, 3, h, w) normalised pixels; or in their place `image_encoder_embeddings`, (B, P, S, D')
                outputs of the vision tower, or `perceiver_embeddings`, (B, P, M, D') outputs of the resampler.
            image_attention_mask: (B, T, P), 1 where a token attends to an image; None: every token attends to all.
            use_cache, output_attentions, output_hidden_states, return_dict: None: as the config says.
            interpolate_pos_encoding: whether images may have another size than the trained one.
            cache_position: of no effect: `past_key_values` says how many tokens are cached.

        Returns:
            IdeficsBaseModelOutputWithPast, or with `return_dict=False` the tuple of its values.
        """
        inputs = prepare_decoder_inputs(
            self.embed, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        flags = use_cache, output_attentions, output_hidden_states, return_dict
        features = None
        if inputs.past.has_read_images:
            cross_attention_inputs = get_cached_cross_attention_inputs(inputs, image_attention_mask)
        else:
            features = compute_image_features(
                self,
                pixel_values,
                image_encoder_embeddings,
                perceiver_embeddings,
                interpolate_pos_encoding=bool(interpolate_pos_encoding),
            )
            cross_attention_inputs = make_cross_attention_inputs(self, inputs, features, image_attention_mask)
        return self._run_decoder(inputs, flags, features, cross_attention_inputs)


class IdeficsForVisionText2Text(IdeficsPreTrainedModel, ModelWithHead, Idefics1):  # type: ignore[misc]
    """Idefics with its head: continues text with images.

    Args:
        vision_model: in place of the vision tower; None: the one that the config describes.
    """

    base_class = IdeficsModel
    architecture_class = Idefics1
    output_class = IdeficsCausalLMOutputWithPast
    forward = make_forward_with_head(IdeficsModel.forward)

    def __init__(self, config: Any, vision_model: nn.Module | None = None) -> None:
        super().__init__(config)
        if self.config.freeze_lm_head:
            self.lm_head.weight.requires_grad_(False)
        if vision_model is not None:
            self.model.vision_model = vision_model


def _initialize_alpha(alpha: nn.Parameter, config: IdeficsConfig) -> None:
    """Initialises the gate of a cross-attention layer by `alpha_initializer`; raises BadSetting for an unknown one."""
    match config.alpha_initializer:
        case "zeros":
            nn.init.zeros_(alpha)
        case "ones":
            nn.init.ones_(alpha)
        case "normal" | "gaussian" | "random":
            nn.init.normal_(alpha, std=config.alphas_initializer_range)
        case other:
            raise BadSetting(f"alpha_initializer is {other!r}; give zeros, ones, normal, gaussian or random")
