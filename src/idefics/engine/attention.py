"""The engine's three ways to attend: within a prompt, to a row's past, to a prefix that endings share.

N packed tokens, R rows, H query heads, h key/value heads, K head size, L positions, M feature rows a picture.
Keys come rotated. Knows no ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from idefics.engine.cache import Cache
from idefics.nn.attention import Memory, visible
from idefics.nn.kernels import Kernel, fused


class PrefillAttn:
    """Prompts of unequal length, packed one after another, each kept in its cache row. Nothing is padded.

    Args:
        cache: its `lengths` are the prompts'.
        looks: for each of the N tokens what it sees: (1, M, H, K) keys and values for each cross layer, or
            nothing. Neighbours that see the same picture hold the same object.
    """

    def __init__(self, cache: Cache, looks: Sequence[Memory], kernel: Kernel = fused) -> None:
        self.cache, self.kernel = cache, kernel
        self.prompts = [slice(*ends) for ends in pairwise(accumulate(cache.lengths, initial=0))]
        self.spans: list[tuple[slice, Memory]] = []  # stretches of tokens that see one picture
        for _, tokens in groupby(range(len(looks)), key=lambda token: id(looks[token])):
            first, *others = tokens
            if looks[first]:
                self.spans.append((slice(first, first + 1 + len(others)), looks[first]))

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer(layer, like=k)
        out = torch.empty_like(q)
        for row, prompt in enumerate(self.prompts):
            kept = slice(self.cache.lengths[row])
            keys[row, :, kept] = k[prompt].transpose(0, 1)
            values[row, :, kept] = v[prompt].transpose(0, 1)
            out[prompt] = _attend_back(self.kernel, q[prompt], k[prompt], v[prompt], self.cache.window)
        return out

    def cross(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for tokens, memory in self.spans:
            out[tokens] = _attend(self.kernel, q[tokens], memory[layer].keys[0], memory[layer].values[0])
        return out


class DecodeAttn:
    """One new token in each row, which joins the cache and sees its row, as far back as the window.

    Args:
        cache: advanced by one position, which this token fills.
        positions: (R,) where the new tokens stand.
    """

    def __init__(self, cache: Cache, positions: Tensor, kernel: Kernel = fused) -> None:
        self.cache, self.positions, self.kernel = cache, positions, kernel
        self.rows = torch.arange(cache.rows, device=positions.device)
        shortest, longest = min(cache.lengths), max(cache.lengths)
        self.past = slice(0 if cache.window is None else max(0, shortest - cache.window), longest)
        self.mask = None  # (R, 1, 1, L)
        if shortest < longest:
            places = torch.arange(self.past.start, longest, device=positions.device)
            self.mask = visible(positions, places, cache.window)[:, None, None]

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (R, h, C, K)
        rows, positions = self.rows.to(k.device), self.positions.to(k.device)
        keys[rows, :, positions] = k
        values[rows, :, positions] = v
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        q = q.unflatten(1, (k.shape[1], -1))  # (R, h, H/h, K)
        seen = keys[:, :, self.past], values[:, :, self.past]
        out = self.kernel(q, *seen, mask=self.mask if self.mask is None else self.mask.to(q.device))
        return out.flatten(1, 2)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        if self.cache.cross:
            keys, values = (x.transpose(1, 2) for x in self.cache.cross[layer])  # (S, H, M, K)
            seeing = self.cache.seeing.to(q.device)
            out[seeing] = self.kernel(q[seeing, :, None], keys, values).squeeze(2)
        return out


class EndingsAttn:
    """Many endings of one prefix, packed: a token sees the prefix and its own ending up to itself, within the window.

    Args:
        cache: one row, the prefix. Endings are not kept in it.
        lengths: tokens of each ending; N is their sum.
    """

    def __init__(self, cache: Cache, lengths: Sequence[int], kernel: Kernel = fused) -> None:
        self.cache, self.kernel = cache, kernel
        ending = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))  # (N,) whose token it is
        places = cache.lengths[0] + torch.cat([torch.arange(length) for length in lengths])  # (N,)
        own = (ending[:, None] == ending) & visible(places, places, cache.window)
        prefix = visible(places, torch.arange(cache.lengths[0]), cache.window)
        self.mask = torch.cat((prefix, own), dim=1).to(cache.device)  # (N, L+N)

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past = slice(self.cache.lengths[0])
        keys = torch.cat((self.cache.keys[layer][0, :, past].transpose(0, 1), k))
        values = torch.cat((self.cache.values[layer][0, :, past].transpose(0, 1), v))
        return _attend(self.kernel, q, keys, values, mask=self.mask.to(q.device))

    def cross(self, layer: int, q: Tensor) -> Tensor:
        if not self.cache.cross:
            return torch.zeros_like(q)
        return _attend(self.kernel, q, self.cache.cross[layer].keys[0], self.cache.cross[layer].values[0])


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
