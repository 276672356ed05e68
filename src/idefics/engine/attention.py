"""How prompts are read over pages: chunks of several rows packed one after another, and endings after a prefix.

N packed tokens, H query heads, h key/value heads, K head size, L positions, M feature rows a picture.
Keys come rotated. Knows no ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.engine.cache import PagedCache, narrowed
from idefics.engine.pages import PAGE
from idefics.nn.attention import Memory, visible
from idefics.nn.kernels import Kernel, fused

Looks = Sequence[tuple[slice, Memory]]  # which of the packed tokens see which picture


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of the packed tokens, which follow one another in a row.

    Attributes:
        tokens: which of the N.
        start: how many tokens of their row have been read before them.
        pages: of their row, from its beginning to the chunk's end at least.
        tree: None, or (n, n) which of the chunk's own tokens each of them sees. Tokens of a tree are not kept.
        depths: (n,) for a tree: how far after `start` each stands.
    """

    tokens: slice
    start: int
    pages: Sequence[int]
    tree: Tensor | None = None
    depths: Tensor | None = None


class PagedAttn:
    """Packed chunks: each token sees its row up to itself, as far back as the window, and joins the cache."""

    def __init__(
        self, cache: PagedCache, chunks: Sequence[Chunk], looks: Looks, kernel: Kernel = fused
    ) -> None:
        self.cache, self.looks, self.kernel = cache, looks, kernel
        self.chunks = [_Sight(cache, chunk) for chunk in chunks]
        kept = [chunk for chunk in chunks if chunk.tree is None]
        # (n,) the tokens that are kept, and where: page and place in it.
        self.kept = torch.cat([torch.arange(c.tokens.start, c.tokens.stop) for c in kept] or [_none()])
        positions = [torch.arange(c.start, c.start + c.tokens.stop - c.tokens.start) for c in kept]
        pages = [torch.tensor(c.pages)[places // PAGE] for c, places in zip(kept, positions, strict=True)]
        self.pages, self.places = torch.cat(pages or [_none()]), torch.cat(positions or [_none()]) % PAGE
        self.all_kept = len(kept) == len(chunks)

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer(layer, k.device)
        pages, places = self.pages.to(k.device), self.places.to(k.device)
        kept = slice(None) if self.all_kept else self.kept.to(k.device)
        k, v = narrowed(k, keys.dtype), narrowed(v, values.dtype)
        keys[pages, :, places] = k[kept]
        values[pages, :, places] = v[kept]
        # What is seen is what is kept, or answers would depend on where prompts are cut.
        k, v = k.to(q.dtype), v.to(q.dtype)
        out = torch.empty_like(q)
        for chunk in self.chunks:
            out[chunk.tokens] = chunk.attend(
                self.kernel, q[chunk.tokens], k[chunk.tokens], v[chunk.tokens], keys, values
            )
        return out

    def cross(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for tokens, memory in self.looks:
            out[tokens] = _attend(self.kernel, q[tokens], memory[layer].keys[0], memory[layer].values[0])
        return out


class _Sight:
    """What a chunk's tokens see of their row, worked out once for all layers."""

    def __init__(self, cache: PagedCache, chunk: Chunk) -> None:
        self.tokens, self.window, self.tree = chunk.tokens, cache.layout.window, chunk.tree
        count = chunk.tokens.stop - chunk.tokens.start
        self.is_first = chunk.start == 0 and chunk.tree is None
        if self.is_first:
            return
        window = self.window
        first = 0 if window is None else max(0, chunk.start + 1 - window) // PAGE
        end = chunk.start if chunk.tree is not None else chunk.start + count
        self.length = end - first * PAGE  # positions that are read from pages
        pages, heads = torch.tensor(chunk.pages[first : -(-end // PAGE)]), cache.layout.kv_heads
        self.gather = (pages * heads + torch.arange(heads)[:, None]).flatten()
        places = torch.arange(first * PAGE, end)
        if chunk.tree is None:
            self.mask = visible(torch.arange(chunk.start, end), places, window)  # (n, L)
        else:
            assert chunk.depths is not None, "a tree says how deep its tokens stand"
            depths = chunk.depths
            own = chunk.tree if window is None else chunk.tree & visible(depths, depths, window)
            self.mask = torch.cat((visible(chunk.start + depths, places, window), own), dim=1)

    def attend(self, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(n, H, K), (n, h, K) twice, and the layer's pages -> (n, H, K)."""
        if self.is_first:
            return _attend_back(kernel, q, k, v, self.window)
        seen_keys, seen_values = (self._gathered(pages).to(q.dtype) for pages in (keys, values))  # (h, L, K)
        if self.tree is not None:
            seen_keys = torch.cat((seen_keys, k.transpose(0, 1)), dim=1)
            seen_values = torch.cat((seen_values, v.transpose(0, 1)), dim=1)
        mask = self.mask.to(q.device)
        return kernel(q.transpose(0, 1)[None], seen_keys[None], seen_values[None], mask=mask)[0].transpose(
            0, 1
        )

    def _gathered(self, pages: Tensor) -> Tensor:
        _, heads, _, size = pages.shape
        flat = pages.view(-1, PAGE * size).index_select(0, self.gather.to(pages.device))
        return flat.view(heads, -1, size)[:, : self.length]


def _attend_back(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention of a prompt's N tokens to themselves; with a window in stretches, so that masks stay small."""
    if window is None or len(q) <= window:
        return _attend(kernel, q, k, v, causal=True)
    places = torch.arange(len(q), device=q.device)
    out = torch.empty_like(q)
    for start in range(0, len(q), window):
        some, seen = slice(start, start + window), slice(max(0, start - window + 1), start + window)
        mask = visible(places[some], places[seen], window)
        out[some] = _attend(kernel, q[some], k[seen], v[seen], mask=mask)
    return out


def _attend(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Attention between packed tokens: (N, H, K), (L, h, K), (L, h, K) -> (N, H, K); mask (N, L)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return kernel(q, k, v, mask=mask, causal=causal)[0].transpose(0, 1)


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.long)
