"""`past_key_values`: what a model keeps of the tokens that it has read.

B rows, h key/value heads, L tokens, K head size, H query heads, S feature rows, P pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from idefics.errors import BadPrompt
from idefics.nn.padded import Beside, KeysValues

Legacy = Sequence[Sequence[Tensor]]


@runtime_checkable
class Layered(Protocol):
    """transformers' cache: for each layer an object with `keys` and `values`."""

    layers: Sequence[Any]


class KeyValueCache:
    """For each layer keys and values, (B, h, L, K) each: indexed and counted like a tuple of such pairs.

    A forward pass makes a new one and leaves the old as it was, so that one beginning can be continued in many ways.

    Attributes:
        layers: the pairs.
        beside: pictures beside the text: keys and values (B, H, S, K) of each cross layer, and (B, 1, P) which of
            them the last token saw; None where there are none.
        has_pictures: whether pictures have been read, so that they need not be given again.
    """

    def __init__(
        self, layers: Sequence[KeysValues] = (), beside: Beside | None = None, *, has_pictures: bool = False
    ) -> None:
        self.layers, self.beside, self.has_pictures = tuple(layers), beside, has_pictures

    @classmethod
    def of(cls, past: KeyValueCache | Layered | Legacy | None) -> KeyValueCache:
        """What a caller gave: a cache, one of transformers', a tuple with (keys, values) for each layer (a learned
        prefix), or None.
        """
        if isinstance(past, KeyValueCache):
            return past
        layers = []
        given = [(layer.keys, layer.values) for layer in past.layers] if isinstance(past, Layered) else past
        for keys, values, *_ in given or ():
            if keys.dim() != 4 or keys.shape != values.shape:
                raise BadPrompt(
                    f"past_key_values holds keys of {tuple(keys.shape)} and values of {tuple(values.shape)}: "
                    "give (rows, heads, tokens, head size) twice for each layer"
                )
            layers.append(KeysValues(keys, values))
        return cls(layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens have been read, padding included."""
        return self.layers[layer_idx].keys.shape[2] if self.layers else 0

    def reorder(self, rows: Tensor) -> Self:
        """Keeps these rows in this order, in place; a row may be kept several times, for beams."""

        def picked(pairs: Sequence[KeysValues]) -> tuple[KeysValues, ...]:
            return tuple(KeysValues(*(x.index_select(0, rows.to(x.device)) for x in pair)) for pair in pairs)

        self.layers = picked(self.layers)
        if self.beside is not None:
            sees = self.beside.sees
            self.beside = Beside(picked(self.beside.memory), sees.index_select(0, rows.to(sees.device)))
        return self

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The tuple of pairs alone."""
        return tuple((keys, values) for keys, values in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> KeysValues:
        return self.layers[layer]

    def __iter__(self) -> Iterator[KeysValues]:
        return iter(self.layers)
