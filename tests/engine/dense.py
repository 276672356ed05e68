"""The dense cache: a row of memory for each sequence, the slow twin of the paged one.

Prompts are read in one pass and together; no page is shared, nothing joins later. Kept as an oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from idefics.config import CacheLayout
from idefics.nn.attention import LayerMemory, Memory, visible
from idefics.nn.kernels import Kernel, fused

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
