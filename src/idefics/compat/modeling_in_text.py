"""Idefics2, Idefics3 and SmolVLM as the guides call them: pictures are read in the text.

B rows, T new tokens, P pictures or frames a row, M vectors of one in the text, D width.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from idefics.compat.cache import KeyValueCache, Legacy
from idefics.compat.configuration_in_text import Idefics2Config, Idefics3Config, SmolVLMConfig
from idefics.compat.modeling import ModelWithHead
from idefics.compat.outputs import (
    CausalLMOutputWithPast,
    Idefics2CausalLMOutputWithPast,
    Idefics3CausalLMOutputWithPast,
    SmolVLMCausalLMOutputWithPast,
)
from idefics.compat.reading import Rows, read, rows_of
from idefics.errors import BadPrompt
from idefics.models.idefics2 import Idefics2
from idefics.models.idefics3 import Idefics3
from idefics.models.in_text import InTextModel
from idefics.nn.attention import Attn
from idefics.nn.stored import TokenEmbedding


class InTextForConditionalGeneration(ModelWithHead, InTextModel):
    """What the three share."""

    config: Idefics2Config | Idefics3Config  # type: ignore[assignment]  # the guides' kind
    reads_squares: ClassVar[bool] = False

    def decode(self, x: Tensor, positions: Tensor, attn: Attn) -> Tensor:
        return InTextModel.forward(self, x, positions, attn)

    def _begin(self, config: Idefics2Config | Idefics3Config) -> None:  # type: ignore[override]
        super()._begin(config)
        # The padding token's row is never trained, as released.
        self.model.text_model.embed_tokens.padding_idx = config.text_config.pad_token_id

    @property
    def deviation(self) -> float:
        return self.config.text_config.initializer_range

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.text_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.text_model.embed_tokens = cast(TokenEmbedding, value)

    def _resize(self, size: int, *, like_mean: bool) -> None:
        for table in (self.get_input_embeddings(), self.lm_head):
            self._resize_table(table, size, like_mean=like_mean)
        self.config.text_config.vocab_size = size

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
        logits_to_keep: int = 0,
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
            labels: (B, T), the tokens that are to be learned, -100 for those that are not.
            use_cache, output_attentions, output_hidden_states, return_dict: None: what the config says.
            logits_to_keep: logits of so many last tokens only; 0: of all.

        Returns:
            CausalLMOutputWithPast, or the tuple of what is in it.

        Raises:
            BadPrompt: arguments that contradict each other, or more or fewer pictures than places; the message has
                both numbers.
        """
        asked = self._asked(use_cache, output_attentions, output_hidden_states, return_dict)
        rows = rows_of(self.embed, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        features = None
        if not rows.past.has_pictures:
            features = self._features(pixel_values, pixel_attention_mask, image_hidden_states)
            rows = self._with_pictures(rows, features)
        result = read(
            self.decode,
            list(self.model.text_model.layers),
            rows,
            window=self.layout.window,
            kernel=self.kernel,
            keeps=asked.use_cache,
            wants_states=asked.output_hidden_states,
            wants_weights=asked.output_attentions,
        )
        if result.cache is not None:
            result.cache.has_pictures = rows.past.has_pictures or features is not None
        return self._answer(result, asked, features, labels, attention_mask, logits_to_keep)

    def _features(self, pixels: Tensor | None, mask: Tensor | None, features: Tensor | None) -> Tensor | None:
        """(frames, M, D) of all pictures, those of one row after those of another."""
        if pixels is None:
            return features
        if features is not None:
            raise BadPrompt("give either pixel_values or image_hidden_states, and not both")
        if pixels.dim() != 5:
            raise BadPrompt(
                f"pixel_values are of {tuple(pixels.shape)}: give (rows, pictures, 3, height, width)"
            )
        frames = pixels.flatten(0, 1)  # (B*P, 3, h, w)
        if mask is None:
            sizes = [tuple(frames.shape[2:])] * len(frames)
        else:  # pictures are padded below and on the right
            stands = mask.flatten(0, 1).bool()
            sizes = list(zip(stands.any(2).sum(1).tolist(), stands.any(1).sum(1).tolist(), strict=True))
        by_size: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, is_real in enumerate((frames != 0).flatten(1).any(dim=1).tolist()):
            if is_real:
                by_size[sizes[index]].append(index)
        encoded: dict[int, Tensor] = {}
        for (height, width), indices in by_size.items():
            if self.reads_squares and height != width:
                raise BadPrompt(
                    f"a frame is {height} x {width} pixels, and this model reads squares: resize it"
                )
            some = frames[indices, :, :height, :width].to(self.device, self.dtype)
            encoded.update(zip(indices, self.encode(some), strict=True))
        return torch.stack([encoded[index] for index in sorted(encoded)]) if encoded else None

    def _with_pictures(self, rows: Rows, features: Tensor | None) -> Rows:
        """Vectors of pictures take the places of their tokens."""
        if features is None:
            return rows
        image = self.config.image_token_id
        if rows.ids is not None:
            places = rows.ids == image
        else:
            places = (rows.x == self.embed(torch.tensor(image, device=rows.x.device))).all(dim=-1)
        vectors = features.flatten(0, -2).to(rows.x.device, rows.x.dtype)
        if (wanted := int(places.sum())) != len(vectors):
            raise BadPrompt(
                f"the rows have {wanted} places for pictures and the pictures fill {len(vectors)}: "
                f"give a picture for every {features.shape[-2]} tokens of id {image}"
            )
        return replace(rows, x=rows.x.masked_scatter(places.to(rows.x.device)[..., None], vectors))


class Idefics2ForConditionalGeneration(InTextForConditionalGeneration, Idefics2):
    """Idefics2 with its head: continues text in which pictures stand, of their native size."""

    config: Idefics2Config  # type: ignore[assignment]
    config_class = Idefics2Config
    model_types = ("idefics2",)
    output_class = Idefics2CausalLMOutputWithPast

    def __init__(self, config: Idefics2Config) -> None:
        Idefics2.__init__(self, config.settings())
        self._begin(config)


class Idefics3ForConditionalGeneration(InTextForConditionalGeneration, Idefics3):
    """Idefics3 with its head: continues text in which pictures stand, cut into squares."""

    config: Idefics3Config  # type: ignore[assignment]
    config_class = Idefics3Config
    model_types = ("idefics3", "smolvlm")  # the same mathematics
    output_class: ClassVar[type[CausalLMOutputWithPast]] = Idefics3CausalLMOutputWithPast
    reads_squares = True

    def __init__(self, config: Idefics3Config) -> None:
        Idefics3.__init__(self, config.settings())
        self._begin(config)


class SmolVLMForConditionalGeneration(Idefics3ForConditionalGeneration):
    """SmolVLM and SmolVLM2 with their heads."""

    config_class = SmolVLMConfig
    output_class = SmolVLMCausalLMOutputWithPast
