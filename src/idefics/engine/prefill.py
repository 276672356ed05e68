"""The inputs of a prefill pass: chunks of several sequences, and tries of continuations, packed without padding.

`PrefillAttn` is the attention of these tokens over the paged KV cache.

N packed tokens, n tokens of one chunk, H query heads, h key/value heads, K head size, L positions, M feature rows of a
picture. Keys have rotary embedding applied already.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.kv_cache import PagedKVCache, cast_to_cache_dtype, gather_pages, page_gather_index
from idefics.engine.model_interface import VLM
from idefics.engine.page_pool import PAGE_SIZE
from idefics.engine.request_state import PrefillChunk
from idefics.nn.attention import CrossKV, causal_window_mask
from idefics.nn.attention_backends import AttentionBackend, sdpa_attention

CrossAttentionSpans = Sequence[tuple[slice, CrossKV]]  # packed tokens, and keys and values of their picture


class PrefillAttn:
    """Causal attention of packed chunks to their sequences, within the sliding window; writes keys and values.

    Args:
        chunks: packed one after another, n tokens each. Their sequences have pages for all tokens of the chunk.
        cross_attention_spans: (slice of packed tokens, keys and values of the picture that they attend to).
    """

    def __init__(
        self,
        cache: PagedKVCache,
        chunks: Sequence[PrefillChunk],
        cross_attention_spans: CrossAttentionSpans,
        backend: AttentionBackend = sdpa_attention,
    ) -> None:
        self.cache, self.cross_attention_spans, self.backend = cache, cross_attention_spans, backend
        ends = accumulate(chunk.num_tokens for chunk in chunks)
        self.chunks = [ChunkAttention(cache, chunk, end) for chunk, end in zip(chunks, ends, strict=True)]
        self.is_all_cached = all(chunk.trie is None for chunk in chunks)
        # The packed tokens that are written to the cache, and to which of its (pages * h * 16) vectors.
        tokens, vectors = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
        num_heads = cache.layout.num_kv_heads
        for chunk, attention in zip(chunks, self.chunks, strict=True):
            if chunk.trie is None:
                positions = torch.arange(chunk.start, chunk.end)[:, None]
                pages = torch.tensor(chunk.sequence.pages)[positions // PAGE_SIZE]  # (n, 1)
                blocks = pages * num_heads + torch.arange(num_heads)  # (n, h)
                tokens.append(torch.arange(attention.token_slice.start, attention.token_slice.stop))
                vectors.append((blocks * PAGE_SIZE + positions % PAGE_SIZE).flatten())
        self.cached_tokens, self.cached_vectors = torch.cat(tokens), torch.cat(vectors)

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Writes (N, h, K) keys and values to the cache and attends to it: (N, H, K) -> (N, H, K)."""
        keys, values = self.cache.layer_kv(layer, k.device)
        cached_tokens = slice(None) if self.is_all_cached else self.cached_tokens.to(k.device)
        cached_vectors = self.cached_vectors.to(k.device)
        k, v = cast_to_cache_dtype(k, keys.dtype), cast_to_cache_dtype(v, values.dtype)
        for pages, computed in ((keys, k), (values, v)):
            vectors = computed[cached_tokens].flatten(0, 1)  # (cached tokens * h, K)
            pages.view(-1, vectors.shape[-1]).index_copy_(0, cached_vectors, vectors)
        # Attend to the values as the cache's dtype rounds them, or answers would depend on the size of chunks.
        k, v = k.to(q.dtype), v.to(q.dtype)
        out = torch.empty_like(q)
        for chunk in self.chunks:
            tokens = chunk.token_slice
            out[tokens] = chunk.attend(self.backend, q[tokens], k[tokens], v[tokens], keys, values)
        return out

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Attends to the picture of each span: (N, H, K) -> (N, H, K), 0 for tokens without a picture."""
        out = torch.zeros_like(q)
        for tokens, cross_kv in self.cross_attention_spans:
            keys, values = cross_kv[layer]
            out[tokens] = _unbatched_attention(self.backend, q[tokens], keys[0], values[0])
        return out


class ChunkAttention:
    """Self-attention of one chunk; its mask and page indices are computed once for all layers.

    Args:
        packed_end: the index after the chunk's last token among the N packed tokens.
    """

    def __init__(self, cache: PagedKVCache, chunk: PrefillChunk, packed_end: int) -> None:
        self.token_slice = slice(packed_end - chunk.num_tokens, packed_end)
        self.is_trie = chunk.trie is not None
        window = self.sliding_window = cache.layout.sliding_window
        start = chunk.start
        self.is_sequence_start = start == 0 and not self.is_trie
        if self.is_sequence_start:
            return
        first_page = 0 if window is None else max(0, start + 1 - window) // PAGE_SIZE
        end = start if self.is_trie else chunk.end  # of the positions that are read from pages
        self.num_cached_positions = end - first_page * PAGE_SIZE
        pages = torch.tensor(chunk.sequence.pages[first_page : -(-end // PAGE_SIZE)])[None]
        self.gather_index = page_gather_index(pages, cache.layout.num_kv_heads)
        key_positions = torch.arange(first_page * PAGE_SIZE, end)
        self.mask: Tensor | None = None  # causal: all positions up to the token's own
        if chunk.trie is None:
            if window is not None:
                self.mask = causal_window_mask(torch.arange(start, end), key_positions, window)  # (n, L)
            return
        depths, tree_mask = chunk.trie.depths, chunk.trie.ancestor_mask
        if window is not None:
            tree_mask &= causal_window_mask(depths, depths, window)
        prefix_mask = causal_window_mask(start + depths, key_positions, window)
        self.mask = torch.cat((prefix_mask, tree_mask), dim=1)  # (n, L + n)

    def attend(
        self, backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Attention of the chunk's tokens.

        Args:
            q, k, v: (n, H, K), (n, h, K) and (n, h, K) of the chunk's tokens.
            keys, values: the layer's pages, (pages, h, 16, K).

        Returns:
            (n, H, K)
        """
        if self.is_sequence_start:
            return _causal_attention(backend, q, k, v, self.sliding_window)
        all_keys, all_values = (
            gather_pages(pages, self.gather_index, 1)[0, :, : self.num_cached_positions].to(q.dtype)
            for pages in (keys, values)
        )  # (h, L, K)
        if self.is_trie:
            all_keys = torch.cat((all_keys, k.transpose(0, 1)), dim=1)
            all_values = torch.cat((all_values, v.transpose(0, 1)), dim=1)
        mask = None if self.mask is None else self.mask.to(q.device)
        out = backend(
            q.transpose(0, 1)[None], all_keys[None], all_values[None], mask=mask, causal=mask is None
        )
        return out[0].transpose(0, 1)


def _causal_attention(
    backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, sliding_window: int | None
) -> Tensor:
    """Causal self-attention of a prompt's n tokens; with a sliding window in blocks, so that masks stay small."""
    if sliding_window is None or len(q) <= sliding_window:
        return _unbatched_attention(backend, q, k, v, causal=True)
    positions = torch.arange(len(q), device=q.device)
    out = torch.empty_like(q)
    for start in range(0, len(q), sliding_window):
        end = start + sliding_window
        query_slice, key_slice = slice(start, end), slice(max(0, start - sliding_window + 1), end)
        mask = causal_window_mask(positions[query_slice], positions[key_slice], sliding_window)
        out[query_slice] = _unbatched_attention(
            backend, q[query_slice], k[key_slice], v[key_slice], mask=mask
        )
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
    """Attention without a batch dimension: (n, H, K), (L, h, K), (L, h, K), mask (n, L) -> (n, H, K)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return backend(q, k, v, mask=mask, causal=causal)[0].transpose(0, 1)


@dataclass(frozen=True)
class PrefillRunner:
    """Runs the model on scheduled chunks, packed without padding.

    Attributes:
        device: the device on which ids are embedded.
    """

    model: VLM
    cache: PagedKVCache
    encoder_cache: EncoderCache
    device: torch.device

    def compute_hidden_states(self, prefill_chunks: Sequence[PrefillChunk]) -> Tensor:
        """Runs the model on chunks of prompts and groups of continuations, packed in one pass.

        Image features replace the embeddings of image tokens.

        Returns:
            (N, D) hidden states of all tokens, in the order of the chunks.
        """
        starts = list(accumulate((chunk.num_tokens for chunk in prefill_chunks[:-1]), initial=0))
        ids, positions = zip(*map(_ids_and_positions, prefill_chunks), strict=True)
        x = self.model.embed(torch.cat(ids).to(self.device))  # (N, D)
        cross_attention_spans: list[tuple[slice, CrossKV]] = []
        for chunk, start in zip(prefill_chunks, starts, strict=True):
            if self.cache.layout.num_cross_attention_layers:
                cross_attention_spans += self._cross_attention_spans(chunk, start)
            else:
                self._insert_image_features(x, chunk, start)
        attn = PrefillAttn(self.cache, prefill_chunks, cross_attention_spans, self.model.attention_backend)
        return self.model.forward(x, torch.cat(positions).to(x.device), attn)

    def _insert_image_features(self, x: Tensor, chunk: PrefillChunk, start: int) -> None:
        """Writes image features over the embeddings of a chunk's image tokens, in place.

        Args:
            x: (N, D) embeddings of all packed tokens.
            start: the index of the chunk's first token in `x`.
        """
        prompt = chunk.sequence.request_state.request.prompt
        for image, positions in zip(prompt.pictures, prompt.image_token_positions, strict=True):
            first, last = bisect_left(positions, chunk.start), bisect_left(positions, chunk.end)
            if first < last:
                rows = torch.tensor(positions[first:last], device=x.device) + (start - chunk.start)
                x[rows] = self.encoder_cache.features(image)[first:last].to(x.device)

    def _cross_attention_spans(self, chunk: PrefillChunk, start: int) -> Iterator[tuple[slice, CrossKV]]:
        """Yields the tokens of a chunk that attend to the same picture, and the picture's keys and values.

        Args:
            start: the index of the chunk's first token among the packed tokens; the slices are of packed tokens too.
        """
        prompt = chunk.sequence.request_state.request.prompt
        image_indices = [  # tokens after the prompt attend to its last picture
            prompt.image_index[min(token, len(prompt) - 1)] for token in range(chunk.start, chunk.end)
        ]
        for index, token_run in groupby(image_indices):
            count = len(list(token_run))
            if index >= 0:
                yield slice(start, start + count), self.encoder_cache.cross_kv(prompt.pictures[index])
            start += count


def _ids_and_positions(chunk: PrefillChunk) -> tuple[Tensor, Tensor]:
    """The ids and positions of a chunk's tokens, (n,) each."""
    if chunk.trie is not None:
        return chunk.trie.ids, chunk.start + chunk.trie.depths
    return torch.tensor(chunk.sequence.ids[chunk.start : chunk.end]), torch.arange(chunk.start, chunk.end)
