"""What Idefics2, Idefics3 and SmolVLM share as the guides call them: pictures are read in the text.

B rows, T new tokens, P pictures or frames a row, M vectors of one in the text, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from idefics.compat.cache import KeyValueCache, Legacy
from idefics.compat.configuration_in_text import Idefics2Config, Idefics3Config
from idefics.compat.inline_images import Frames, with_pictures
from idefics.compat.modeling import BaseModel, ModelWithHead, PreTrainedModel
from idefics.compat.modeling_vision import SiglipVisionTransformer
from idefics.compat.outputs import BaseModelOutputWithPooling
from idefics.compat.reading import read, rows_of
from idefics.errors import BadPrompt
from idefics.models.in_text import Body, InTextModel
from idefics.nn.attention import Attn
from idefics.nn.stored import TokenEmbedding


class InTextPreTrainedModel(PreTrainedModel):
    """What the classes of the three families share."""

    config: Idefics2Config | Idefics3Config

    @property
    def deviation(self) -> float:
        return self.config.text_config.initializer_range

    @property
    def _body(self) -> Body:
        return cast(Body, self.base_model)

    def get_input_embeddings(self) -> nn.Embedding:
        return self._body.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self._body.text_model.embed_tokens = cast(TokenEmbedding, value)

    def _resize(self, size: int, *, like_mean: bool) -> None:
        for table in (self.get_input_embeddings(), self.get_output_embeddings()):
            if table is not None:
                self._resize_table(table, size, like_mean=like_mean)
        self.config.text_config.vocab_size = size


class InTextBaseModel(BaseModel, InTextPreTrainedModel, Body):
    """A model without a head."""

    tower_class = SiglipVisionTransformer
    reads_squares: ClassVar[bool] = False

    def _begin(self, config: Any) -> None:
        super()._begin(config)
        # The padding token's row is never trained, as released.
        self.text_model.embed_tokens.padding_idx = config.text_config.pad_token_id

    def encode(self, frames: Tensor) -> Tensor:  # (P, 3, h, w) -> (P, M, D)
        out: Tensor = self.connector(self.vision_model(frames).last_hidden_state)
        return out

    def decode(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        return Body.forward(self, x, positions, attn)

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """What the model makes of pictures.

        Args:
            pixel_values: (B, P, 3, h, w); pictures of zeros alone are padding.
            pixel_attention_mask: (B, P, h, w), 1 where a picture's pixels are; None: everywhere.
            return_dict: False gives a tuple.

        Returns:
            BaseModelOutputWithPooling: `pooler_output` has for each row (vectors, D), what takes the places of its
            image tokens; `last_hidden_state` (P, S, D') of the vision tower, where all frames are of one size.
        """
        frames = Frames.of(pixel_values, pixel_attention_mask, squares=self.reads_squares)
        towers: list[Tensor] = []
        features = frames.encoded(lambda some: self._encoded(some, towers), self.device, self.dtype)
        vectors = (
            ()
            if features is None
            else features.flatten(0, 1).split([count * features.shape[1] for count in frames.counts])
        )
        out = BaseModelOutputWithPooling(
            last_hidden_state=towers[0] if len(towers) == 1 else None, pooler_output=list(vectors)
        )
        return out.to_tuple() if return_dict is False else out

    def _encoded(self, frames: Tensor, towers: list[Tensor]) -> Tensor:
        towers.append(self.vision_model(frames).last_hidden_state)
        out: Tensor = self.connector(towers[-1])
        return out

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | Legacy | None = None,
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
        """Reads a batch of rows. L is T and the tokens of the past.

        Args:
            input_ids: (B, T), with `image_token_id` wherever a vector of a picture stands; or in their place
                `inputs_embeds`, (B, T, D), with that token's embedding there.
            attention_mask: (B, L), 1 where a token stands and 0 for padding; None: no padding.
            position_ids: (B, T); None: counted from `attention_mask`.
            past_key_values: what an earlier pass gave, or (keys, values) for each layer: a learned prefix. Pictures
                that it has read need not be given again.
            pixel_values: (B, P, 3, h, w); pictures of zeros alone are padding.
            pixel_attention_mask: (B, P, h, w), 1 where a picture's pixels are; None: everywhere.
            image_hidden_states: (frames, M, D), in place of pictures what an earlier pass made of them.
            use_cache, output_attentions, output_hidden_states, return_dict: None: what the config says.
            cache_position: of no effect: `past_key_values` says how many tokens came before.

        Returns:
            BaseModelOutputWithPast, or the tuple of what is in it.

        Raises:
            BadPrompt: arguments that contradict each other, or more or fewer pictures than places; the message has
                both numbers.
        """
        asked = self._asked(use_cache, output_attentions, output_hidden_states, return_dict)
        rows = rows_of(self.embed, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        features = None
        if not rows.past.has_pictures:
            features = self._features(pixel_values, pixel_attention_mask, image_hidden_states)
            rows = with_pictures(rows, features, self.config.image_token_id, self.embed)
        result = read(
            self.decode,
            list(self.text_model.layers),
            rows,
            window=self.text_model.config.window,
            kernel=self.kernel,
            keeps=asked.use_cache,
            wants_states=asked.output_hidden_states,
            wants_weights=asked.output_attentions,
        )
        return self._output(result, rows.past, features, asked)

    def _features(self, pixels: Tensor | None, mask: Tensor | None, features: Tensor | None) -> Tensor | None:
        """(frames, M, D) of all pictures, those of one row after those of another."""
        if pixels is None:
            return features
        if features is not None:
            raise BadPrompt("give either pixel_values or image_hidden_states, and not both")
        return Frames.of(pixels, mask, squares=self.reads_squares).encoded(
            self.encode, self.device, self.dtype
        )


class InTextForConditionalGeneration(ModelWithHead, InTextPreTrainedModel, InTextModel):
    """A model with its head. `model` is the model without it."""

    config: Idefics2Config | Idefics3Config  # type: ignore[assignment]  # the guides' kind
    model: InTextBaseModel

    @property
    def picture_ids(self) -> tuple[int, ...]:
        return (self.config.image_token_id,)

    def decode(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        return self.model.decode(x, positions, attn)

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As `get_image_features` of the model without a head."""
        return self.model.get_image_features(pixel_values, pixel_attention_mask, return_dict)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | Legacy | None = None,
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
        """Reads a batch of rows, as the model without a head does; and what the head makes of them.

        Args:
            labels: (B, T), the tokens that are to be learned, -100 for those that are not.
            logits_to_keep: logits of so many last tokens only, or a tensor of their indices; 0: of all.
            num_items_in_batch: the loss is the sum over the tokens divided by this; None: their mean.

        Returns:
            CausalLMOutputWithPast, or the tuple of what is in it.

        Raises:
            BadPrompt: arguments that contradict each other, or more or fewer pictures than places; the message has
                both numbers.
        """
        asked = self._asked(use_cache, output_attentions, output_hidden_states, return_dict)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            image_hidden_states=image_hidden_states,
            use_cache=asked.use_cache,
            output_attentions=asked.output_attentions,
            output_hidden_states=asked.output_hidden_states,
            return_dict=True,
        )
        return self._answer(out, asked, labels, attention_mask, logits_to_keep, num_items_in_batch)
