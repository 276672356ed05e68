"""`KeyValueCache`, the `past_key_values` of the models.

B rows, h key/value heads, L tokens, K head size, H query heads, S image features of a row, P images of a row.
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
    """A cache of transformers: for each layer an object with `keys` and `values`."""

    layers: Sequence[Any]


class KeyValueCache:
    """Keys and values of each layer, (B, h, L, K) each; behaves like a tuple of such pairs.

    A forward pass returns a new cache and does not change the old one, so that a prefix can be continued in many ways.

    Attributes:
        layers: the pairs.
        cross_attention_inputs: in cross-attention models the keys and values (B, H, S, K) of the images, and a mask
            (B, 1, P) of those that the last token attends to; None without images.
        has_read_images: whether images have been read, which later calls need not give again.
    """

    def __init__(
        self,
        layers: Sequence[LayerKV] = (),
        cross_attention_inputs: CrossAttentionInputs | None = None,
        *,
        has_read_images: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.cross_attention_inputs = cross_attention_inputs
        self.has_read_images = has_read_images

    @classmethod
    def from_past(cls, past: KeyValueCache | LayeredCache | LegacyCache | None) -> KeyValueCache:
        """Converts the `past_key_values` of a caller.

        Args:
            past: a cache of this package or of transformers; (keys, values) for each layer, a learned prefix; or None.

        Raises:
            BadPrompt: keys and values have wrong shapes.
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
        """The number of cached tokens, padding included."""
        return self.layers[layer_idx].keys.shape[2] if self.layers else 0

    def reorder_cache(self, beam_idx: Tensor) -> Self:
        """Selects rows by their indices (R,), in place; for beams, a row may be selected several times."""

        def select_rows(x: Tensor) -> Tensor:
            return x.index_select(0, beam_idx.to(x.device))

        self.layers = tuple(LayerKV(*map(select_rows, pair)) for pair in self.layers)
        if (cross := self.cross_attention_inputs) is not None:
            cross_kv = tuple(LayerKV(*map(select_rows, pair)) for pair in cross.cross_kv)
            self.cross_attention_inputs = CrossAttentionInputs(cross_kv, select_rows(cross.image_mask))
        return self

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """A tuple of (keys, values) for each layer."""
        return tuple((keys, values) for keys, values in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> LayerKV:
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerKV]:
        return iter(self.layers)
