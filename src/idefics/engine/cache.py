"""The dense key/value cache: one row a sequence, one block of memory a layer.

R rows, h key/value heads, C positions, K head size, M feature rows a picture. Knows no ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from idefics.config import CacheLayout
from idefics.nn.attention import LayerMemory, Memory

BLOCK = 256  # positions by which a cache grows: long answers need not be paid for in advance


class Cache:
    """Keys and values of the tokens read so far, and of the picture that the next token of each row sees.

    Attributes:
        keys, values: (R, h, C, K) for each layer that has been read, where the layer lies; keys after rotation.
        lengths: how many tokens of each row have been read.
        seeing: (S,) the rows whose next token sees a picture.
        cross: (S, M, H, K) keys and values of those rows' pictures, for each cross layer; empty where S is 0.
        window: how far back a token sees, as in `CacheLayout`. What lies further back is kept all the same.

    Args:
        lengths: how many tokens each row starts with.
        memories: what the last token of each row sees: (1, M, H, K) keys and values for each cross layer, or
            nothing.
        like: a tensor that lies where ids are looked up.
    """

    def __init__(
        self, layout: CacheLayout, lengths: Sequence[int], memories: Sequence[Memory], like: Tensor
    ) -> None:
        self.lengths, self.window = list(lengths), layout.window
        self.capacity = _whole_blocks(max(self.lengths))
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.device = like.device
        self._gather(memories)

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return len(self.lengths)

    def layer(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, (R, h, C, K) each; made on first use, on the device of its (N, h, K) `like`."""
        if layer not in self.keys:
            shape = (self.rows, like.shape[1], self.capacity, like.shape[2])
            # Zeros, for a masked position still counts as 0 times its value, and memory as it lies may hold NaN.
            self.keys[layer], self.values[layer] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def advance(self) -> Tensor:
        """Makes place for one more token in each row: -> (R,) their positions."""
        positions = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        missing = _whole_blocks(max(self.lengths)) - self.capacity
        if missing > 0:
            self.keys = {layer: _longer(keys, missing) for layer, keys in self.keys.items()}
            self.values = {layer: _longer(values, missing) for layer, values in self.values.items()}
            self.capacity += missing
        return positions

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order: fewer when some have finished, one several times for beams."""
        if list(rows) == list(range(self.rows)):
            return
        index = torch.tensor(rows, device=self.device)
        self.keys = {layer: keys[index.to(keys.device)] for layer, keys in self.keys.items()}
        self.values = {layer: values[index.to(values.device)] for layer, values in self.values.items()}
        self.lengths = [self.lengths[row] for row in rows]
        memories = [self.memories[row] for row in rows]
        if [id(memory) for memory in memories] != [id(memory) for memory in self.memories]:
            self._gather(memories)

    def _gather(self, memories: Sequence[Memory]) -> None:
        """Lays the rows' pictures side by side: once for each set of rows, not once a token."""
        self.memories = list(memories)
        seeing = [row for row, memory in enumerate(memories) if memory]
        self.seeing = torch.tensor(seeing, device=self.device, dtype=torch.long)
        layers = zip(*(memories[row] for row in seeing), strict=True)
        self.cross = [
            LayerMemory(torch.cat([one.keys for one in layer]), torch.cat([one.values for one in layer]))
            for layer in layers
        ]


def _whole_blocks(positions: int) -> int:
    return -(-positions // BLOCK) * BLOCK


def _longer(x: Tensor, missing: int) -> Tensor:
    rows, heads, _, size = x.shape
    return torch.cat((x, x.new_zeros(rows, heads, missing, size)), dim=2)


PAGE = 16  # positions of one page


class PagedCache:
    """Keys and values in pages of 16 positions; which page is whose, others know.

    P pages, h key/value heads, K head size. Page 0 is never owned: it stands where a row has no page.

    Attributes:
        keys, values: for each layer (P, h, 16, K); keys after rotation. Zero at first: a masked position still counts
            as 0 times its value, and memory as it lies may hold NaN.

    Args:
        device: where all layers lie; None where they lie apart: each is then made where its first keys appear.
    """

    def __init__(
        self, layout: CacheLayout, pages: int, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        self.layout, self.pages, self.dtype = layout, pages, dtype
        self.keys, self.values = (
            [self._zeros(device or torch.device("meta")) for _ in range(layout.layers)] for _ in range(2)
        )

    def layer(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, which lie on `device`."""
        if self.keys[layer].device != device:
            self.keys[layer], self.values[layer] = self._zeros(device), self._zeros(device)
        return self.keys[layer], self.values[layer]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Pages over others, in every layer."""
        for pages in (*self.keys, *self.values):
            if not pages.is_meta:
                pages[torch.tensor(targets, device=pages.device)] = pages[
                    torch.tensor(sources, device=pages.device)
                ]

    def _zeros(self, device: torch.device) -> Tensor:
        shape = (self.pages, self.layout.kv_heads, PAGE, self.layout.head_size)
        if device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=device)
        # NumPy asks the system for memory that is zero already: pages that nobody touches cost nothing.
        count = int(np.prod(shape)) * self.dtype.itemsize
        return torch.from_numpy(np.zeros(count, np.uint8)).view(self.dtype).view(shape)
