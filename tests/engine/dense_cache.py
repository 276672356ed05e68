"""The dense KV cache: a row of memory for each sequence, an oracle for the paged one.

Prompts are read in one pass and together; no page is shared, nothing joins later. Kept as an oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from idefics.config import KVCacheLayout
from idefics.nn.attention import CrossKV, LayerCrossKV, causal_window_mask
from idefics.nn.attention_backends import AttentionBackend, sdpa_attention

GROWTH_BLOCK = 256  # positions by which a cache grows: long answers need not be paid for in advance


class DenseCache:
    """Keys and values of the tokens computed so far, and of the picture that the next token of each row attends to.

    Attributes:
        keys, values: (R, h, C, K) for each layer that has been read, where the layer lies; keys after rotation.
        lengths: how many tokens of each row have been read.
        rows_with_image: (S,) the rows whose next token sees a picture.
        batched_cross_kv: (S, M, H, K) keys and values of those rows' pictures, for each cross layer; empty where S is
            0.
        sliding_window: how far back a token sees, as in `KVCacheLayout`. What lies further back is kept all the same.

    Args:
        lengths: how many tokens each row starts with.
        cross_kvs: what the last token of each row sees: (1, M, H, K) keys and values for each cross layer, or
            nothing.
        like: a tensor that lies where ids are looked up.
    """

    def __init__(
        self, layout: KVCacheLayout, lengths: Sequence[int], cross_kvs: Sequence[CrossKV], like: Tensor
    ) -> None:
        self.lengths, self.sliding_window = list(lengths), layout.sliding_window
        self.capacity = _round_up_to_blocks(max(self.lengths))
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.device = like.device
        self._batch_cross_kvs(cross_kvs)

    @property
    def num_sequences(self) -> int:
        """How many sequences there are."""
        return len(self.lengths)

    def layer_keys_values(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, (R, h, C, K) each; made on first use, on the device of its (N, h, K) `like`."""
        if layer not in self.keys:
            shape = (self.num_sequences, like.shape[1], self.capacity, like.shape[2])
            # Zeros, for a masked position still counts as 0 times its value, and memory as it lies may hold NaN.
            self.keys[layer], self.values[layer] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def append_position(self) -> Tensor:
        """Makes place for one more token in each row: -> (R,) their positions."""
        positions = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        missing = _round_up_to_blocks(max(self.lengths)) - self.capacity
        if missing > 0:
            self.keys = {layer: _append_zeros(keys, missing) for layer, keys in self.keys.items()}
            self.values = {layer: _append_zeros(values, missing) for layer, values in self.values.items()}
            self.capacity += missing
        return positions

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order: fewer when some have finished, one several times for beams."""
        if list(rows) == list(range(self.num_sequences)):
            return
        index = torch.tensor(rows, device=self.device)
        self.keys = {layer: keys[index.to(keys.device)] for layer, keys in self.keys.items()}
        self.values = {layer: values[index.to(values.device)] for layer, values in self.values.items()}
        self.lengths = [self.lengths[row] for row in rows]
        memories = [self.cross_kvs[row] for row in rows]
        if [id(memory) for memory in memories] != [id(memory) for memory in self.cross_kvs]:
            self._batch_cross_kvs(memories)

    def _batch_cross_kvs(self, cross_kvs: Sequence[CrossKV]) -> None:
        """Lays the rows' pictures side by side: once for each set of rows, not once a token."""
        self.cross_kvs = list(cross_kvs)
        rows = [row for row, memory in enumerate(cross_kvs) if memory]
        self.rows_with_image = torch.tensor(rows, device=self.device, dtype=torch.long)
        layers = zip(*(cross_kvs[row] for row in rows), strict=True)
        self.batched_cross_kv = [
            LayerCrossKV(torch.cat([one.keys for one in layer]), torch.cat([one.values for one in layer]))
            for layer in layers
        ]


def _round_up_to_blocks(positions: int) -> int:
    return -(-positions // GROWTH_BLOCK) * GROWTH_BLOCK


def _append_zeros(x: Tensor, num_positions: int) -> Tensor:
    rows, heads, _, size = x.shape
    return torch.cat((x, x.new_zeros(rows, heads, num_positions, size)), dim=2)


class DensePrefillAttention:
    """Prompts of unequal length, packed one after another without padding, each written to its cache row.

    Args:
        cache: its `lengths` are the prompts'.
        cross_kv_by_token: for each of the N tokens what it sees: (1, M, H, K) keys and values for each cross layer, or
            nothing. Neighbours that see the same picture hold the same object.
    """

    def __init__(
        self,
        cache: DenseCache,
        cross_kv_by_token: Sequence[CrossKV],
        backend: AttentionBackend = sdpa_attention,
    ) -> None:
        self.cache, self.backend = cache, backend
        self.prompt_slices = [slice(*ends) for ends in pairwise(accumulate(cache.lengths, initial=0))]
        self.cross_kv_spans: list[tuple[slice, CrossKV]] = []  # stretches of tokens that see one picture
        for _, tokens in groupby(
            range(len(cross_kv_by_token)), key=lambda token: id(cross_kv_by_token[token])
        ):
            first, *others = tokens
            if cross_kv_by_token[first]:
                self.cross_kv_spans.append((slice(first, first + 1 + len(others)), cross_kv_by_token[first]))

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer_keys_values(layer, like=k)
        out = torch.empty_like(q)
        for row, prompt in enumerate(self.prompt_slices):
            positions = slice(self.cache.lengths[row])
            keys[row, :, positions] = k[prompt].transpose(0, 1)
            values[row, :, positions] = v[prompt].transpose(0, 1)
            out[prompt] = _causal_attention(
                self.backend, q[prompt], k[prompt], v[prompt], self.cache.sliding_window
            )
        return out

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for tokens, memory in self.cross_kv_spans:
            out[tokens] = _unbatched_attention(
                self.backend, q[tokens], memory[layer].keys[0], memory[layer].values[0]
            )
        return out


class DenseDecodeAttention:
    """One new token in each row, which is written to the cache and attends to its row within the window.

    Args:
        cache: advanced by one position, which this token fills.
        positions: (R,) where the new tokens stand.
    """

    def __init__(
        self, cache: DenseCache, positions: Tensor, backend: AttentionBackend = sdpa_attention
    ) -> None:
        self.cache, self.positions, self.backend = cache, positions, backend
        self.row_indices = torch.arange(cache.num_sequences, device=positions.device)
        shortest, longest = min(cache.lengths), max(cache.lengths)
        self.visible_positions = slice(
            0 if cache.sliding_window is None else max(0, shortest - cache.sliding_window), longest
        )
        self.mask = None  # (R, 1, 1, L)
        if shortest < longest:
            key_positions = torch.arange(self.visible_positions.start, longest, device=positions.device)
            self.mask = causal_window_mask(positions, key_positions, cache.sliding_window)[:, None, None]

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (R, h, C, K)
        rows, positions = self.row_indices.to(k.device), self.positions.to(k.device)
        keys[rows, :, positions] = k
        values[rows, :, positions] = v
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        q = q.unflatten(1, (k.shape[1], -1))  # (R, h, H/h, K)
        visible = keys[:, :, self.visible_positions], values[:, :, self.visible_positions]
        out = self.backend(q, *visible, mask=self.mask if self.mask is None else self.mask.to(q.device))
        return out.flatten(1, 2)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        if self.cache.batched_cross_kv:
            keys, values = (x.transpose(1, 2) for x in self.cache.batched_cross_kv[layer])  # (S, H, M, K)
            rows = self.cache.rows_with_image.to(q.device)
            out[rows] = self.backend(q[rows, :, None], keys, values).squeeze(2)
        return out


def _causal_attention(
    backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, sliding_window: int | None
) -> Tensor:
    """Causal self-attention of a prompt's N tokens; with a sliding window in blocks, so that masks stay small."""
    if sliding_window is None or len(q) <= sliding_window:
        return _unbatched_attention(backend, q, k, v, causal=True)
    positions = torch.arange(len(q), device=q.device)
    out = torch.empty_like(q)
    for start in range(0, len(q), sliding_window):
        queries, keys = (
            slice(start, start + sliding_window),
            slice(max(0, start - sliding_window + 1), start + sliding_window),
        )
        mask = causal_window_mask(positions[queries], positions[keys], sliding_window)
        out[queries] = _unbatched_attention(backend, q[queries], k[keys], v[keys], mask=mask)
    return out


def _unbatched_attention(
    backend: AttentionBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention between packed tokens: (N, H, K), (L, h, K), (L, h, K) -> (N, H, K); mask (N, L)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return backend(q, k, v, mask=mask, causal=causal)[0].transpose(0, 1)
