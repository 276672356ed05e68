"""`past_key_values`: what a model keeps of the tokens that it has read.

B rows, h key/value heads, L tokens, K head size, H query heads, S feature rows, P pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from idefics.compat.padded_attention import CrossAttentionInputs, LayerKV
from idefics.errors import BadPrompt

LegacyCache = Sequence[Sequence[Tensor]]


@runtime_checkable
class LayeredCache(Protocol):
    """transformers' cache: for each layer an object with `keys` and `values`."""

    layers: Sequence[Any]


class KeyValueCache:
    """For each layer keys and values, (B, h, L, K) each: indexed and counted like a tuple of such pairs.

    A forward pass makes a new one and leaves the old as it was, so that one beginning can be continued in many ways.

    Attributes:
        layers: the pairs.
        cross_attention_inputs: pictures beside the text: keys and values (B, H, S, K) of each cross layer, and (B, 1, P) which of
            them the last token saw; None where there are none.
        has_read_images: whether pictures have been read, so that they need not be given again.
    """

    def __init__(
        self,
        layers: Sequence[LayerKV] = (),
        cross_attention_inputs: CrossAttentionInputs | None = None,
        *,
        has_read_images: bool = False,
    ) -> None:
        self.layers, self.cross_attention_inputs, self.has_read_images = (
            tuple(layers),
            cross_attention_inputs,
            has_read_images,
        )

    @classmethod
    def from_past(cls, past: KeyValueCache | LayeredCache | LegacyCache | None) -> KeyValueCache:
        """What a caller gave: a cache, one of transformers', a tuple with (keys, values) for each layer (a learned
        prefix), or None.
        """
        if isinstance(past, KeyValueCache):
            return past
        layers = []
        given = (
            [(layer.keys, layer.values) for layer in past.layers] if isinstance(past, LayeredCache) else past
        )
        for keys, values, *_ in given or ():
            if keys.dim() != 4 or keys.shape != values.shape:
                raise BadPrompt(
                    f"past_key_values holds keys of {tuple(keys.shape)} and values of {tuple(values.shape)}: "
                    "give (rows, heads, tokens, head size) twice for each layer"
                )
            layers.append(LayerKV(keys, values))
        return cls(layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens have been read, padding included."""
        return self.layers[layer_idx].keys.shape[2] if self.layers else 0

    def reorder_cache(self, beam_idx: Tensor) -> Self:
        """Keeps these rows in this order, in place; a row may be kept several times, for beams."""

        def select_rows(pairs: Sequence[LayerKV]) -> tuple[LayerKV, ...]:
            return tuple(LayerKV(*(x.index_select(0, beam_idx.to(x.device)) for x in pair)) for pair in pairs)

        self.layers = select_rows(self.layers)
        if self.cross_attention_inputs is not None:
            image_mask = self.cross_attention_inputs.image_mask
            self.cross_attention_inputs = CrossAttentionInputs(
                select_rows(self.cross_attention_inputs.cross_kv),
                image_mask.index_select(0, beam_idx.to(image_mask.device)),
            )
        return self

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The tuple of pairs alone."""
        return tuple((keys, values) for keys, values in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> LayerKV:
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerKV]:
        return iter(self.layers)
