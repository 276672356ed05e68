"""How one token of each row attends to its row's pages: in place where torch can, else gathered first.

Shapes are fixed and nothing asks the host, so that a CUDA graph can hold it.
R rows, P pages, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from inspect import signature
from typing import Protocol

import torch
from torch import Tensor

from idefics.config import KVCacheLayout
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.page_pool import PAGE_SIZE
from idefics.nn.attention_backends import (
    AttentionBackend,
    flash_attention,
    native_or_sdpa_attention,
    sdpa_attention,
)

HALF_DTYPES = (torch.float16, torch.bfloat16)


class DecodeAttention(Protocol):
    """Made once a step, used in each layer."""

    def __init__(
        self, page_tables: Tensor, positions: Tensor, layout: KVCacheLayout, backend: AttentionBackend
    ) -> None:
        """(R, P) int32 pages of each row, (R,) its last position, which it sees."""
        ...

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(R, H, K), a layer's pages (pages, h, 16, K) twice -> (R, H, K)."""
        ...


def choose_decode_attention(cache: PagedKVCache, backend: AttentionBackend) -> type[DecodeAttention]:
    """The way for a cache. Gathering reads every key, writes it and reads it again: in place is always better."""
    return (
        PagedInPlace
        if backend in (native_or_sdpa_attention, flash_attention, sdpa_attention)
        and can_attend_in_place(cache)
        else GatheredPages
    )


def can_attend_in_place(cache: PagedKVCache) -> bool:
    """Whether torch's FlashAttention reads pages here, and reads them right: it is tried.

    Of torch 2.13's kernels FlashAttention 3 and 4 take pages of 16 positions. They are installed beside torch and
    switched on with `torch.nn.attention.activate_flash_attention_impl`; what is built in, 2, refuses.
    """
    keys = cache.keys[0]
    if keys.device.type != "cuda" or keys.dtype not in HALF_DTYPES:
        return False
    from torch.nn.attention import varlen  # late: it brings torch's compiler, which takes a second

    if "block_table" not in signature(varlen.varlen_attn).parameters:
        return False
    layout, num_positions = cache.layout, 3 * PAGE_SIZE
    pages = [torch.randn(4, *keys.shape[1:], dtype=keys.dtype, device=keys.device) for _ in range(2)]
    tables = torch.tensor([[2, 3, 1], [1, 0, 0]], dtype=torch.int32, device=keys.device)
    positions = torch.tensor([num_positions - 5, 3], device=keys.device)
    q = torch.randn(2, layout.num_kv_heads, layout.head_size, dtype=keys.dtype, device=keys.device)
    try:
        result = PagedInPlace(tables, positions, layout, sdpa_attention)(q, *pages)
    except (RuntimeError, ValueError, NotImplementedError):  # it says what it lacks
        return False
    expected = GatheredPages(tables, positions, layout, sdpa_attention)(q, *pages)
    return bool(torch.isclose(result, expected, rtol=0.02, atol=0.02).all())


class GatheredPages:
    """Each row's pages side by side, then the model's kernel under a mask."""

    def __init__(
        self, page_tables: Tensor, positions: Tensor, layout: KVCacheLayout, backend: AttentionBackend
    ) -> None:
        self.backend, heads, num_pages = backend, layout.num_kv_heads, page_tables.shape[1]
        device = page_tables.device
        key_positions = torch.arange(num_pages * PAGE_SIZE, device=device)[None]
        if (
            layout.sliding_window is not None
            and (num_window_pages := -(-layout.sliding_window // PAGE_SIZE) + 1) < num_pages
        ):
            first = (positions + 1 - layout.sliding_window).clamp(
                min=0
            ) // PAGE_SIZE  # (R,) the first page that is seen
            columns = first[:, None] + torch.arange(num_window_pages, device=device)
            page_tables = page_tables.gather(1, columns.clamp(max=num_pages - 1))
            key_positions = first[:, None] * PAGE_SIZE + torch.arange(
                num_window_pages * PAGE_SIZE, device=device
            )
        distance = positions[:, None] - key_positions
        visible = (
            distance >= 0
            if layout.sliding_window is None
            else (distance >= 0) & (distance < layout.sliding_window)
        )
        self.mask = visible[:, None, None]  # (R, 1, 1, L)
        # Rows of (pages * h, 16 * K): one copy brings keys into the order in which they are read.
        self.gather_index = (
            page_tables[:, None] * heads + torch.arange(heads, device=device)[:, None]
        ).flatten()

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        grouped = q.unflatten(1, (keys.shape[1], -1))  # (R, h, H/h, K)
        out = self.backend(grouped, self._gather_rows(keys), self._gather_rows(values), mask=self.mask)
        return out.flatten(1, 2)

    def _gather_rows(self, pages: Tensor) -> Tensor:
        """(pages, h, 16, K) -> (R, h, L, K): each row's own."""
        _, heads, _, size = pages.shape
        flat = pages.view(-1, PAGE_SIZE * size).index_select(0, self.gather_index)
        return flat.view(len(self.mask), heads, -1, size)


class PagedInPlace:
    """torch's FlashAttention over pages, which finds them by the tables."""

    def __init__(
        self, page_tables: Tensor, positions: Tensor, layout: KVCacheLayout, backend: AttentionBackend
    ) -> None:
        from torch.nn.attention.varlen import varlen_attn

        self.varlen_attention = varlen_attn
        self.page_tables, self.lengths = page_tables.contiguous(), (positions + 1).int()
        self.query_offsets = torch.arange(len(page_tables) + 1, dtype=torch.int32, device=page_tables.device)
        self.max_length = page_tables.shape[1] * PAGE_SIZE
        self.window_size = (-1, -1) if layout.sliding_window is None else (layout.sliding_window - 1, 0)

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out = self.varlen_attention(
            q,
            keys.transpose(1, 2),  # (pages, 16, h, K), as it lies
            values.transpose(1, 2),
            self.query_offsets,
            None,
            1,
            self.max_length,
            window_size=self.window_size,
            enable_gqa=True,
            seqused_k=self.lengths,
            block_table=self.page_tables,
        )
        assert isinstance(out, Tensor)
        return out
