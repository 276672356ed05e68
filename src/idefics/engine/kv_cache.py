"""The paged KV cache: the tensors. `kv_cache_manager` assigns the pages to sequences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from idefics.config import KVCacheLayout
from idefics.engine.page_pool import PAGE_SIZE


def cast_to_cache_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts keys or values to the cache's dtype.

    Numbers beyond its range are clamped: an infinity in the cache would turn attention scores into NaN.
    """
    if x.dtype == dtype:
        return x
    max_value = torch.finfo(dtype).max
    return x.clamp(-max_value, max_value).to(dtype)


def page_gather_index(page_tables: Tensor, num_kv_heads: int) -> Tensor:
    """The `gather_index` of `gather_pages` for the pages in `page_tables` (R, P): (R * h * P,), h = `num_kv_heads`."""
    heads = torch.arange(num_kv_heads, device=page_tables.device)
    return (page_tables[:, None] * num_kv_heads + heads[:, None]).flatten()


def gather_pages(pages: Tensor, gather_index: Tensor, num_rows: int) -> Tensor:
    """Copies each row's pages into consecutive positions: (pages, h, 16, K) -> (R, h, P * 16, K).

    Args:
        gather_index: that of `page_gather_index`.
        num_rows: R.
    """
    _, heads, _, size = pages.shape
    gathered = pages.view(-1, PAGE_SIZE * size).index_select(0, gather_index.to(pages.device))
    return gathered.view(num_rows, heads, -1, size)


class PagedKVCache:
    """Keys and values in pages of 16 positions, for every layer.

    P pages, h key/value heads, K head size. Page 0 is never allocated: page tables are padded with it.

    Attributes:
        keys, values: (P, h, 16, K) for each layer; keys with rotary embedding applied. Initialised to zero: attention
            multiplies the values of masked positions by 0, which uninitialised memory with NaN would survive.

    Args:
        device: the device of all layers; None if layers are on several devices: each is then allocated when its first
            keys arrive, on their device.
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
        """A layer's keys and values, (P, h, 16, K) each; allocated on `device` if the layer has none yet."""
        if self.keys[layer].device != device:
            self.keys[layer], self.values[layer] = self._allocate_zeros(device), self._allocate_zeros(device)
        return self.keys[layer], self.values[layer]

    def copy_pages(self, source_by_target: Mapping[int, int]) -> None:
        """Copies pages in every layer; `source_by_target`: page to overwrite -> page to copy."""
        if not source_by_target:
            return
        targets, sources = torch.tensor(list(source_by_target.items())).T
        for pages in (*self.keys, *self.values):
            if not pages.is_meta:
                pages[targets.to(pages.device)] = pages[sources.to(pages.device)]

    def _allocate_zeros(self, device: torch.device) -> Tensor:
        """A tensor of zeros, (P, h, 16, K), for the keys or the values of one layer."""
        shape = (self.num_pages, self.layout.num_kv_heads, PAGE_SIZE, self.layout.head_size)
        if device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=device)
        # NumPy allocates with calloc: pages that are never written take no physical memory.
        num_bytes = int(np.prod(shape)) * self.dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(self.dtype).view(shape)
