"""The base classes of the guides' inline-image models: Idefics2, Idefics3 and SmolVLM.

B rows, T new tokens, L cached and new tokens, P frames (images or tiles) of a row, M features of a frame, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from idefics.compat.configuration_inline import Idefics2Config, Idefics3Config
from idefics.compat.decoder_forward import prepare_decoder_inputs, run_decoder
from idefics.compat.inline_images import FrameBatch, merge_image_features
from idefics.compat.kv_cache import KeyValueCache, LegacyCache
from idefics.compat.model_construction import accept_any_config_in_init, without_weight_init
from idefics.compat.modeling import BaseModelWithoutHead, ModelWithHead, PreTrainedModel
from idefics.compat.modeling_outputs import BaseModelOutputWithPooling
from idefics.compat.modeling_vision import SiglipVisionTransformer
from idefics.errors import BadPrompt
from idefics.models.inline import InlineImageBackbone
from idefics.models.vision_language_model import VisionLanguageModel
from idefics.nn.attention import Attn
from idefics.nn.upcast import TokenEmbedding


class InlineImagePreTrainedModel(PreTrainedModel):
    """What the classes of all inline-image families share: embedding and vocabulary."""

    config: Idefics2Config | Idefics3Config

    @property
    def init_std(self) -> float:
        """Standard deviation of initial weights: `initializer_range` of the decoder."""
        return self.config.text_config.initializer_range

    @property
    def _backbone(self) -> InlineImageBackbone:
        return cast(InlineImageBackbone, self.base_model)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of the token ids."""
        return self._backbone.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the embedding of the token ids."""
        self._backbone.text_model.embed_tokens = cast(TokenEmbedding, value)

    def _resize_vocabulary(self, size: int, *, mean_resizing: bool) -> None:
        for table in (self.get_input_embeddings(), self.get_output_embeddings()):
            if table is not None:
                self._resize_rows(table, size, mean_resizing=mean_resizing)
        self.config.text_config.vocab_size = size


class InlineImageBaseModel(BaseModelWithoutHead, InlineImagePreTrainedModel, InlineImageBackbone):
    """An inline-image model without a head: text and images to hidden states."""

    vision_tower_class = SiglipVisionTransformer
    backbone_class: ClassVar[type[InlineImageBackbone]]  # the class of `models` that this one extends
    requires_square_frames: ClassVar[bool] = False

    @accept_any_config_in_init
    def __init__(self, config: Any) -> None:
        # The constructor of each family takes the config alone.
        self.backbone_class.__init__(self, config.to_model_config())
        self._finish_init(config)

    def _finish_init(self, config: Any) -> None:
        super()._finish_init(config)
        # The row of the padding token is not trained, as in transformers.
        self.text_model.embed_tokens.padding_idx = config.text_config.pad_token_id

    def encode(self, frames: Tensor) -> Tensor:
        """(P, 3, h, w) normalised pixels -> (P, M, D) image features."""
        out: Tensor = self.connector(self.vision_model(frames).last_hidden_state)
        return out

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder on packed tokens: embeddings (N, D), positions (N,) -> hidden states (N, D)."""
        return InlineImageBackbone.forward(self, x, positions, attn)

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
        frames = FrameBatch.from_pixel_values(
            pixel_values, pixel_attention_mask, requires_squares=self.requires_square_frames
        )
        vision_outputs: list[Tensor] = []
        features = frames.encode_frames(
            lambda some: self._encode_and_record(some, vision_outputs), self.device, self.dtype
        )
        features_by_row = (
            ()
            if features is None
            else features.flatten(0, 1).split([count * features.shape[1] for count in frames.frames_per_row])
        )
        out = BaseModelOutputWithPooling(
            last_hidden_state=vision_outputs[0] if len(vision_outputs) == 1 else None,
            pooler_output=list(features_by_row),
        )
        return out.to_tuple() if return_dict is False else out

    def _encode_and_record(self, frames: Tensor, vision_outputs: list[Tensor]) -> Tensor:
        vision_outputs.append(self.vision_model(frames).last_hidden_state)
        out: Tensor = self.connector(vision_outputs[-1])
        return out

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
        options = self._resolve_forward_options(
            use_cache, output_attentions, output_hidden_states, return_dict
        )
        inputs = prepare_decoder_inputs(
            self.embed, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        features = None
        if not inputs.past.has_read_images:
            features = self._resolve_image_features(pixel_values, pixel_attention_mask, image_hidden_states)
            inputs = merge_image_features(inputs, features, self.config.image_token_id, self.embed)
        result = run_decoder(
            self.forward_packed,
            list(self.text_model.layers),
            inputs,
            options,
            window=self.text_model.config.sliding_window,
            backend=self.attention_backend,
        )
        return self._make_output(result, inputs.past, features, options)

    def _resolve_image_features(
        self, pixels: Tensor | None, mask: Tensor | None, features: Tensor | None
    ) -> Tensor | None:
        """(frames, M, D) image features of the batch, row after row; None without images."""
        if pixels is None:
            return features
        if features is not None:
            raise BadPrompt("give either pixel_values or image_hidden_states, and not both")
        return FrameBatch.from_pixel_values(
            pixels, mask, requires_squares=self.requires_square_frames
        ).encode_frames(self.encode, self.device, self.dtype)


class InlineImageForConditionalGeneration(ModelWithHead, InlineImagePreTrainedModel, VisionLanguageModel):
    """An inline-image model with its head. `model` is the model without it."""

    config: Idefics2Config | Idefics3Config  # type: ignore[assignment]  # not that of `models`
    model: InlineImageBaseModel
    base_class: ClassVar[type[InlineImageBaseModel]]

    @accept_any_config_in_init
    def __init__(self, config: Any) -> None:
        with without_weight_init():
            base_model = self.base_class(config)
        VisionLanguageModel.__init__(self, config.to_model_config(), base_model)
        self._finish_init(config)

    @property
    def image_token_ids(self) -> tuple[int, ...]:
        """The id of the placeholder of an image feature."""
        return (self.config.image_token_id,)

    def forward_packed(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        """The decoder on packed tokens: embeddings (N, D), positions (N,) -> hidden states (N, D)."""
        return self.model.forward_packed(x, positions, attn)

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes images, as `get_image_features` of the model without its head."""
        return self.model.get_image_features(pixel_values, pixel_attention_mask, return_dict)

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Computes the logits of a batch, and the loss where there are labels.

        Args:
            input_ids, ..., image_hidden_states: as in `forward` of the model without its head.
            labels: (B, T) token ids, -100 where there is no loss.
            logits_to_keep: logits of so many last tokens, or of those whose indices a tensor holds; 0: of all.
            num_items_in_batch: divides the summed loss; None: the loss is the mean.

        Returns:
            CausalLMOutputWithPast, or with `return_dict=False` the tuple of its values.

        Raises:
            BadPrompt: arguments contradict each other, or there are more or fewer image tokens than features.
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
            pixel_attention_mask=pixel_attention_mask,
            image_hidden_states=image_hidden_states,
            use_cache=options.use_cache,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            return_dict=True,
        )
        return self._make_output_with_logits(
            out, options, labels, attention_mask, logits_to_keep, num_items_in_batch
        )
