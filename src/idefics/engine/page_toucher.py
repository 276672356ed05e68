"""Writes to memory of the KV cache before it is needed, while the engine is idle.

Memory that the system has never given is slow to write first: it is cleared page by page, 9 MB for 100 tokens of
SmolVLM-500M, which the first token would wait for.
"""

from __future__ import annotations

import ctypes

from torch import Tensor

from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.page_pool import PagePool

MAX_TOUCHED_BYTES = 2**24  # of pages that no sequence has used yet


class PageToucher:
    """Touches the pages that `page_pool` will allocate next, a layer at a time, on a CPU.

    Only the thread that allocates pages may call it: unused pages must stay unused meanwhile.
    """

    def __init__(self, cache: PagedKVCache, page_pool: PagePool) -> None:
        self._cache, self._page_pool = cache, page_pool
        self._touched_end = 0  # all unused pages before this are touched in all layers
        self._target_end = 0  # all unused pages before this are touched in layers before `_layer`
        self._layer = 0
        page_bytes = sum(_bytes_per_page(pages) for pages in (*cache.keys, *cache.values))
        is_on_cpu = all(pages.device.type == "cpu" for pages in (*cache.keys, *cache.values))
        self._num_pages_ahead = MAX_TOUCHED_BYTES // page_bytes if is_on_cpu and page_bytes else 0

    @property
    def has_work(self) -> bool:
        """Whether `touch_layer` would touch anything."""
        return self._num_pages_ahead > 0 and self._touched_end < self._next_end

    def touch_layer(self) -> None:
        """Writes zeros to the next unused pages of one layer."""
        if self._layer == 0:
            self._target_end = self._next_end
        start = max(self._touched_end, self._page_pool.first_unused_page)
        for pages in (self._cache.keys[self._layer], self._cache.values[self._layer]):
            if start < self._target_end:
                num_bytes = (self._target_end - start) * _bytes_per_page(pages)
                ctypes.memset(pages.data_ptr() + start * _bytes_per_page(pages), 0, num_bytes)
        self._layer += 1
        if self._layer == len(self._cache.keys):
            self._layer, self._touched_end = 0, self._target_end

    @property
    def _next_end(self) -> int:
        """The end of the pages that should be touched."""
        return min(self._page_pool.first_unused_page + self._num_pages_ahead, self._page_pool.num_pages)


def _bytes_per_page(pages: Tensor) -> int:
    """Bytes of one page of a layer's keys or values, (pages, h, 16, K)."""
    return pages.stride(0) * pages.itemsize
