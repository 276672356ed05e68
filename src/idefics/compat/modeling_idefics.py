"""Idefics as the guides call it: pictures are read beside the text.

B rows, T new tokens, P pictures a row, M feature rows of one, D' their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from idefics.compat.configuration_idefics import IdeficsConfig
from idefics.compat.cross_attention_inputs import ImageArguments
from idefics.compat.decoder_forward import prepare_decoder_inputs, run_decoder
from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.compat.model_construction import model_constructor, without_weight_init
from idefics.compat.modeling import BaseModelWithoutHead, ModelWithHead, PreTrainedModel
from idefics.compat.modeling_outputs import (
    IdeficsBaseModelOutputWithPast,
    IdeficsCausalLMOutputWithPast,
)
from idefics.compat.modeling_vision import IdeficsVisionTransformer
from idefics.compat.training import add_output_dropout, freeze_except
from idefics.errors import BadSetting
from idefics.models.idefics1 import (
    DecoupledEmbedding,
    DecoupledHead,
    GatedCrossAttentionLayer,
    Idefics1,
    Idefics1Backbone,
)
from idefics.nn.attention import Attn
from idefics.nn.vit import ClipEmbeddings


class IdeficsPreTrainedModel(PreTrainedModel):
    """What both Idefics classes share: `backbone` is the model without a head."""

    config: IdeficsConfig
    config_class = IdeficsConfig
    model_types = ("idefics",)

    @property
    def backbone(self) -> Idefics1Backbone:
        return cast(Idefics1Backbone, self.base_model)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GatedCrossAttentionLayer):
            for alpha in (module.alpha_cross_attn, module.alpha_dense):
                _initialize_alpha(alpha, self.config)
        if isinstance(module, ClipEmbeddings):
            nn.init.normal_(module.class_embedding)

    @property
    def init_std(self) -> float:
        return self.config.initializer_range

    def get_input_embeddings(self) -> nn.Embedding:
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.backbone.embed_tokens = cast(DecoupledEmbedding, value)

    def tie_weights(self) -> None:
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
        """That of the config, without additional tokens."""
        return self.config.vocab_size

    @property
    def total_vocab_size(self) -> int:
        return (
            self.backbone.embed_tokens.num_embeddings + self.backbone.embed_tokens.num_additional_embeddings
        )

    def _resize_vocabulary(self, size: int, *, mean_resizing: bool) -> None:
        """Additional tokens, where there are any, become more or fewer; else the vocabulary itself."""
        embeddings, head = self.backbone.embed_tokens, self.get_output_embeddings()
        tables: list[nn.Module] = [embeddings, *([] if head is None else [head])]
        if embeddings.num_additional_embeddings:
            size -= embeddings.num_embeddings
            if size < 1:
                raise BadSetting(
                    f"new_num_tokens is {size + embeddings.num_embeddings}; give more than vocab_size, "
                    f"{embeddings.num_embeddings}: the additional tokens come after those"
                )
            embeddings.num_additional_embeddings = size
            if isinstance(head, DecoupledHead):
                head.num_additional_outputs = size
            tables = [embeddings.additional_embedding, *(module.additional_fc for module in tables[1:])]  # type: ignore
            self.config.additional_vocab_size = size
        else:
            self.config.vocab_size = size
        for table in tables:
            self._resize_rows(table, size, mean_resizing=mean_resizing)

    def freeze_relevant_params(self, config: IdeficsConfig | None = None) -> None:
        """Freezes what the config says. Gated blocks, the resampler and additional tokens are always trained."""
        config = config or self.config
        if config.freeze_text_layers:
            self.backbone.embed_tokens.weight.requires_grad_(False)
            self.freeze_text_layers(config.freeze_text_module_exceptions)
        if config.freeze_vision_layers:
            self.freeze_vision_layers(config.freeze_vision_module_exceptions)

    def freeze_text_layers(self, module_exceptions: Sequence[str] = ()) -> None:
        """Freezes the decoder's layers and last norm but for modules of these kinds."""
        freeze_except(self.backbone.layers, module_exceptions)
        freeze_except(self.backbone.norm, module_exceptions)

    def freeze_vision_layers(self, module_exceptions: Sequence[str] = ()) -> None:
        """Freezes the vision tower but for modules of these kinds."""
        freeze_except(self.backbone.vision_model, module_exceptions)


class IdeficsModel(BaseModelWithoutHead, IdeficsPreTrainedModel, Idefics1Backbone):
    """Idefics without a head."""

    vision_tower_class = IdeficsVisionTransformer
    output_class = IdeficsBaseModelOutputWithPast

    @model_constructor
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

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, M, D')
        tower: nn.Module = self.vision_model
        if isinstance(tower, IdeficsVisionTransformer):
            vision_output = tower(frames, interpolate_pos_encoding=True)  # sizes have been checked
        else:  # the caller's own
            vision_output = tower(frames)
        out: Tensor = self.perceiver_resampler(
            vision_output if isinstance(vision_output, Tensor) else vision_output.last_hidden_state
        )
        return out

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
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
        """As `IdeficsForVisionText2Text.forward`, without labels.

        Returns:
            IdeficsBaseModelOutputWithPast, or the tuple of what is in it.
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
        past, features = inputs.past, None
        if past.has_read_images:
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
            cross_attention_inputs,
            backend=self.attention_backend,
            dropout_p=self.config.dropout if self.training else 0.0,
            use_cache=options.use_cache,
            output_hidden_states=options.output_hidden_states,
            output_attentions=options.output_attentions,
        )
        return self._make_output(result, inputs.past, features, options)


class IdeficsForVisionText2Text(IdeficsPreTrainedModel, ModelWithHead, Idefics1):  # type: ignore[misc]
    """Idefics with its head: continues text beside which pictures stand.

    Args:
        vision_model: takes the vision tower's place; None: the one that the config describes.
    """

    output_class = IdeficsCausalLMOutputWithPast
    model: IdeficsModel

    @model_constructor
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
        """Reads a batch of rows. L is T and the tokens of the past.

        Args:
            input_ids: (B, T); or in their place `inputs_embeds`, (B, T, D).
            attention_mask: (B, L), 1 where a token stands and 0 for padding; None: no padding.
            position_ids: (B, T); None: counted from `attention_mask`.
            past_key_values: what an earlier pass gave, or (keys, values) for each layer: a learned prefix. Pictures
                that it has read need not be given again.
            pixel_values, image_encoder_embeddings, ...: as in `ImageArguments`; at most one of the first three.
            labels: (B, T), tokens to be learned, -100 for those that are not.
            use_cache, output_attentions, output_hidden_states, return_dict: None: what the config says.
            logits_to_keep: logits of so many last tokens only, or a tensor of their indices; 0: of all.
            num_items_in_batch: the loss is the sum over the tokens divided by this; None: their mean.

        Returns:
            IdeficsCausalLMOutputWithPast, or the tuple of what is in it.

        Raises:
            BadPrompt: arguments that contradict each other; the message has both shapes.
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


def _initialize_alpha(alpha: nn.Parameter, config: IdeficsConfig) -> None:
    match config.alpha_initializer:
        case "zeros":
            nn.init.zeros_(alpha)
        case "ones":
            nn.init.ones_(alpha)
        case "normal" | "gaussian" | "random":
            nn.init.normal_(alpha, std=config.alphas_initializer_range)
        case other:
            raise BadSetting(f"alpha_initializer is {other!r}; give zeros, ones, normal, gaussian or random")
