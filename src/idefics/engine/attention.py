"""The engine's three ways to attend: within a prompt, to a row's past, to a prefix that endings share.

N packed tokens, R rows, H query heads, h key/value heads, K head size, L positions, M feature rows a picture.
Keys come rotated. Knows no ids and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from idefics.engine.cache import Cache
from idefics.nn.attention import Memory


class PrefillAttn:
    """Prompts of unequal length, packed one after another, each kept in its cache row. Nothing is padded.

    Args:
        cache: its `lengths` are the prompts'.
        looks: for each of the N tokens what it sees: (1, M, H, K) keys and values for each cross layer, or
            nothing. Neighbours that see the same picture hold the same object.
    """

    def __init__(self, cache: Cache, looks: Sequence[Memory]) -> None:
        self.cache = cache
        self.prompts = [slice(*ends) for ends in pairwise(accumulate(cache.lengths, initial=0))]
        self.spans: list[tuple[slice, Memory]] = []  # stretches of tokens that see one picture
        for _, tokens in groupby(range(len(looks)), key=lambda token: id(looks[token])):
            first, *others = tokens
            if looks[first]:
                self.spans.append((slice(first, first + 1 + len(others)), looks[first]))

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for row, prompt in enumerate(self.prompts):
            kept = slice(self.cache.lengths[row])
            self.cache.keys[layer][row, :, kept] = k[prompt].transpose(0, 1)
            self.cache.values[layer][row, :, kept] = v[prompt].transpose(0, 1)
            out[prompt] = _attend(q[prompt], k[prompt], v[prompt], causal=True)
        return out

    def cross(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for tokens, memory in self.spans:
            out[tokens] = _attend(q[tokens], memory[layer].keys[0], memory[layer].values[0])
        return out


class DecodeAttn:
    """One new token in each row, which joins the cache and sees all of its row.

    Args:
        cache: advanced by one position, which this token fills.
        positions: (R,) where the new tokens stand.
    """

    def __init__(self, cache: Cache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions
        self.rows = torch.arange(cache.rows, device=positions.device)
        self.longest = max(cache.lengths)
        self.mask = None  # (R, 1, 1, L)
        if min(cache.lengths) < self.longest:
            places = torch.arange(self.longest, device=positions.device)
            self.mask = (places <= positions[:, None])[:, None, None]

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (R, h, C, K)
        keys[self.rows, :, self.positions] = k
        values[self.rows, :, self.positions] = v
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        q = q.unflatten(1, (k.shape[1], -1))  # (R, h, H/h, K)
        past = slice(self.longest)
        out = scaled_dot_product_attention(q, keys[:, :, past], values[:, :, past], attn_mask=self.mask)
        return out.flatten(1, 2)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        if self.cache.cross:
            keys, values = (x.transpose(1, 2) for x in self.cache.cross[layer])  # (S, H, M, K)
            seen = scaled_dot_product_attention(q[self.cache.seeing, :, None], keys, values)
            out[self.cache.seeing] = seen.squeeze(2)
        return out


class EndingsAttn:
    """Many endings of one prefix, packed: a token sees the prefix and its own ending up to itself.

    Args:
        cache: one row, the prefix. Endings are not kept in it.
        lengths: tokens of each ending; N is their sum.
    """

    def __init__(self, cache: Cache, lengths: Sequence[int]) -> None:
        self.cache = cache
        ending = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))  # (N,) whose token it is
        own = (ending[:, None] == ending).tril()
        prefix = torch.ones(len(ending), cache.lengths[0], dtype=torch.bool)
        self.mask = torch.cat((prefix, own), dim=1).to(cache.device)  # (N, L+N)

    def self_(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        past = slice(self.cache.lengths[0])
        keys = torch.cat((self.cache.keys[layer][0, :, past].transpose(0, 1), k))
        values = torch.cat((self.cache.values[layer][0, :, past].transpose(0, 1), v))
        return _attend(q, keys, values, mask=self.mask)

    def cross(self, layer: int, q: Tensor) -> Tensor:
        if not self.cache.cross:
            return torch.zeros_like(q)
        return _attend(q, self.cache.cross[layer].keys[0], self.cache.cross[layer].values[0])


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Attention between packed tokens: (N, H, K), (L, h, K), (L, h, K) -> (N, H, K); mask (N, L)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return out[0].transpose(0, 1)
