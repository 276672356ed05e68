"""How one token of each row attends to its row's pages: in place where torch can, else gathered first.

Shapes are fixed and nothing asks the host, so that a CUDA graph can hold it.
R rows, P pages, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from inspect import signature
from typing import Protocol

import torch
from torch import Tensor

from idefics.config import CacheLayout
from idefics.engine.cache import PagedCache
from idefics.engine.pages import PAGE
from idefics.nn.kernels import Kernel, fast, flash, fused

HALVES = (torch.float16, torch.bfloat16)


class Reading(Protocol):
    """Made once a step, used in each layer."""

    def __init__(self, tables: Tensor, positions: Tensor, layout: CacheLayout, kernel: Kernel) -> None:
        """(R, P) int32 pages of each row, (R,) its last position, which it sees."""
        ...

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(R, H, K), a layer's pages (pages, h, 16, K) twice -> (R, H, K)."""
        ...


def reading(cache: PagedCache, kernel: Kernel) -> type[Reading]:
    """The way for a cache. Gathering reads every key, writes it and reads it again: in place is always better."""
    return InPlace if kernel in (fast, flash, fused) and reads_in_place(cache) else Gathered


def reads_in_place(cache: PagedCache) -> bool:
    """Whether torch's FlashAttention reads pages here, and reads them right: it is tried.

    Of torch 2.13's kernels FlashAttention 3 and 4 take pages of 16 positions. They are installed beside torch and
    switched on with `torch.nn.attention.activate_flash_attention_impl`; what is built in, 2, refuses.
    """
    keys = cache.keys[0]
    if keys.device.type != "cuda" or keys.dtype not in HALVES:
        return False
    from torch.nn.attention import varlen  # late: it brings torch's compiler, which takes a second

    if "block_table" not in signature(varlen.varlen_attn).parameters:
        return False
    layout, count = cache.layout, 3 * PAGE
    pages = [torch.randn(4, *keys.shape[1:], dtype=keys.dtype, device=keys.device) for _ in range(2)]
    tables = torch.tensor([[2, 3, 1], [1, 0, 0]], dtype=torch.int32, device=keys.device)
    positions = torch.tensor([count - 5, 3], device=keys.device)
    q = torch.randn(2, layout.kv_heads, layout.head_size, dtype=keys.dtype, device=keys.device)
    try:
        found = InPlace(tables, positions, layout, fused)(q, *pages)
    except (RuntimeError, ValueError, NotImplementedError):  # it says what it lacks
        return False
    expected = Gathered(tables, positions, layout, fused)(q, *pages)
    return bool(torch.isclose(found, expected, rtol=0.02, atol=0.02).all())


class Gathered:
    """Each row's pages side by side, then the model's kernel under a mask."""

    def __init__(self, tables: Tensor, positions: Tensor, layout: CacheLayout, kernel: Kernel) -> None:
        self.kernel, heads, count = kernel, layout.kv_heads, tables.shape[1]
        device = tables.device
        places = torch.arange(count * PAGE, device=device)[None]
        if layout.window is not None and (most := -(-layout.window // PAGE) + 1) < count:
            first = (positions + 1 - layout.window).clamp(min=0) // PAGE  # (R,) the first page that is seen
            columns = first[:, None] + torch.arange(most, device=device)
            tables = tables.gather(1, columns.clamp(max=count - 1))
            places = first[:, None] * PAGE + torch.arange(most * PAGE, device=device)
        back = positions[:, None] - places
        seen = back >= 0 if layout.window is None else (back >= 0) & (back < layout.window)
        self.mask = seen[:, None, None]  # (R, 1, 1, L)
        # Rows of (pages * h, 16 * K): one copy brings keys into the order in which they are read.
        self.gather = (tables[:, None] * heads + torch.arange(heads, device=device)[:, None]).flatten()

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        grouped = q.unflatten(1, (keys.shape[1], -1))  # (R, h, H/h, K)
        out = self.kernel(grouped, self._own(keys), self._own(values), mask=self.mask)
        return out.flatten(1, 2)

    def _own(self, pages: Tensor) -> Tensor:
        """(pages, h, 16, K) -> (R, h, L, K): each row's own."""
        _, heads, _, size = pages.shape
        flat = pages.view(-1, PAGE * size).index_select(0, self.gather)
        return flat.view(len(self.mask), heads, -1, size)


class InPlace:
    """torch's FlashAttention over pages, which finds them by the tables."""

    def __init__(self, tables: Tensor, positions: Tensor, layout: CacheLayout, kernel: Kernel) -> None:
        from torch.nn.attention.varlen import varlen_attn

        self.attend = varlen_attn
        self.tables, self.lengths = tables.contiguous(), (positions + 1).int()
        self.starts = torch.arange(len(tables) + 1, dtype=torch.int32, device=tables.device)
        self.most = tables.shape[1] * PAGE
        self.window = (-1, -1) if layout.window is None else (layout.window - 1, 0)

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out = self.attend(
            q,
            keys.transpose(1, 2),  # (pages, 16, h, K), as it lies
            values.transpose(1, 2),
            self.starts,
            None,
            1,
            self.most,
            window_size=self.window,
            enable_gqa=True,
            seqused_k=self.lengths,
            block_table=self.tables,
        )
        assert isinstance(out, Tensor)
        return out
