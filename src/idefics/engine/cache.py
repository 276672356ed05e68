"""The dense key/value cache: one row a sequence, one block of memory a layer.

R rows, h key/value heads, C positions, K head size, M feature rows a picture. Knows no ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idefics.config import CacheLayout
from idefics.nn.attention import LayerMemory, Memory

BLOCK = 256  # positions by which a cache grows: long answers need not be paid for in advance


class Cache:
    """Keys and values of the tokens read so far, and of the picture that the next token of each row sees.

    Attributes:
        keys, values: (R, h, C, K) for each layer, keys after rotation.
        lengths: how many tokens of each row have been read.
        seeing: (S,) the rows whose next token sees a picture.
        cross: (S, M, H, K) keys and values of those rows' pictures, for each cross layer; empty where S is 0.

    Args:
        lengths: how many tokens each row starts with.
        memories: what the last token of each row sees: (1, M, H, K) keys and values for each cross layer, or
            nothing.
        like: a tensor whose device and dtype the cache shall have.
    """

    def __init__(
        self, layout: CacheLayout, lengths: Sequence[int], memories: Sequence[Memory], like: Tensor
    ) -> None:
        self.lengths = list(lengths)
        shape = (len(self.lengths), layout.kv_heads, _whole_blocks(max(self.lengths)), layout.head_size)
        # Zeros, for a masked position still counts as 0 times its value, and memory as it lies may hold NaN.
        self.keys = [like.new_zeros(shape) for _ in range(layout.layers)]
        self.values = [like.new_zeros(shape) for _ in range(layout.layers)]
        self.device = like.device
        self._gather(memories)

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return len(self.lengths)

    def advance(self) -> Tensor:
        """Makes place for one more token in each row: -> (R,) their positions."""
        positions = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        missing = _whole_blocks(max(self.lengths)) - self.keys[0].shape[2]
        if missing > 0:
            self.keys = [_longer(keys, missing) for keys in self.keys]
            self.values = [_longer(values, missing) for values in self.values]
        return positions

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order: fewer when some have finished, one several times for beams."""
        if list(rows) == list(range(self.rows)):
            return
        index = torch.tensor(rows, device=self.device)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
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
