"""Keys and values in pages, for every layer. Knows no ids and no model; whose a page is, `pages` knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from idefics.config import KVCacheLayout
from idefics.engine.page_pool import PAGE_SIZE


def cast_to_cache_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values as a cache of another dtype keeps them.

    What is too large becomes the largest number that there is: an infinity would make every later score that it meets
    no number at all.
    """
    if x.dtype == dtype:
        return x
    max_value = torch.finfo(dtype).max
    return x.clamp(-max_value, max_value).to(dtype)


class PagedKVCache:
    """Keys and values in pages of 16 positions; which page is whose, others know.

    P pages, h key/value heads, K head size. Page 0 is never owned: it stands where a row has no page.

    Attributes:
        keys, values: for each layer (P, h, 16, K); keys after rotation. Zero at first: a masked position still counts
            as 0 times its value, and memory as it lies may hold NaN.

    Args:
        device: where all layers lie; None where they lie apart: each is then made where its first keys appear.
    """

    def __init__(
        self, layout: KVCacheLayout, num_pages: int, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        self.layout, self.num_pages, self.dtype = layout, num_pages, dtype
        self.keys, self.values = (
            [self._allocate_zeros(device or torch.device("meta")) for _ in range(layout.num_layers)]
            for _ in range(2)
        )

    def layer_kv(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, which lie on `device`."""
        if self.keys[layer].device != device:
            self.keys[layer], self.values[layer] = self._allocate_zeros(device), self._allocate_zeros(device)
        return self.keys[layer], self.values[layer]

    def copy_pages(self, source_pages: Sequence[int], target_pages: Sequence[int]) -> None:
        """Pages over others, in every layer."""
        for pages in (*self.keys, *self.values):
            if not pages.is_meta:
                pages[torch.tensor(target_pages, device=pages.device)] = pages[
                    torch.tensor(source_pages, device=pages.device)
                ]

    def _allocate_zeros(self, device: torch.device) -> Tensor:
        shape = (self.num_pages, self.layout.num_kv_heads, PAGE_SIZE, self.layout.head_size)
        if device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=device)
        # NumPy asks the system for memory that is zero already: pages that nobody touches cost nothing.
        num_bytes = int(np.prod(shape)) * self.dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(self.dtype).view(shape)
