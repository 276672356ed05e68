"""The inputs of a prefill pass: the tokens of several chunks packed one after another, without padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.decode_inputs import last_prompt_token_cross_kv
from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.prefill_attention import PackedChunk, PrefillAttn
from idefics.engine.scheduler_output import PrefillChunk
from idefics.nn.attention import CrossKV


class PrefillInputs(NamedTuple):
    """The arguments of `VLM.forward` for N packed tokens of width D.

    Attributes:
        embeddings: (N, D)
        positions: (N,)
        attn: attention within the chunks' sequences, and to their pictures.
        chunk_ends: for each chunk the index after its last token.
    """

    embeddings: Tensor
    positions: Tensor
    attn: PrefillAttn
    chunk_ends: list[int]


class PrefillInputBuilder:
    """Builds `PrefillInputs`: the tokens of all scheduled chunks, packed without padding.

    Args:
        device: the device on which ids are embedded.
    """

    def __init__(
        self, model: VLM, cache: PagedKVCache, encoder_cache: EncoderCache, device: torch.device
    ) -> None:
        self.model, self.cache, self.encoder_cache, self.device = model, cache, encoder_cache, device
        self.uses_cross_attention = cache.layout.num_cross_attention_layers > 0

    def build(self, prefill_chunks: Sequence[PrefillChunk]) -> PrefillInputs:
        """Packs chunks of prompts and groups of continuations one after another, with image features inserted."""
        offsets = list(accumulate((chunk.end - chunk.start for chunk in prefill_chunks), initial=0))
        ids, positions, packed_chunks = [], [], []
        cross_attention_spans: list[tuple[slice, CrossKV]] = []
        for chunk, (start, end) in zip(prefill_chunks, pairwise(offsets), strict=True):
            chunk_ids, chunk_positions, packed_chunk = _pack_chunk(chunk, slice(start, end))
            ids.append(chunk_ids)
            positions.append(chunk_positions)
            packed_chunks.append(packed_chunk)
            if self.uses_cross_attention:
                cross_attention_spans += self._cross_attention_spans(chunk, start, end)
        x = self.model.embed(torch.cat(ids).to(self.device))  # (N, D)
        if not self.uses_cross_attention:
            for chunk, start in zip(prefill_chunks, offsets, strict=False):
                if chunk.continuation_group is None:
                    self._insert_image_features(x, chunk, start)
        attn = PrefillAttn(self.cache, packed_chunks, cross_attention_spans, self.model.attention_backend)
        return PrefillInputs(x, torch.cat(positions).to(x.device), attn, offsets[1:])

    def _insert_image_features(self, x: Tensor, chunk: PrefillChunk, start: int) -> None:
        """Replaces the embeddings of a chunk's image tokens, from index `start` of (N, D), by image features."""
        prompt = chunk.sequence.request_state.request.prompt
        for image, positions in zip(prompt.pictures, prompt.image_token_positions, strict=True):
            first, last = bisect_left(positions, chunk.start), bisect_left(positions, chunk.end)
            if first < last:
                rows = torch.tensor(positions[first:last], device=x.device) + (start - chunk.start)
                x[rows] = self.encoder_cache.features(image)[first:last].to(x.device)

    def _cross_attention_spans(
        self, chunk: PrefillChunk, start: int, end: int
    ) -> Iterator[tuple[slice, CrossKV]]:
        """The packed tokens of a chunk, from `start` to `end`, that attend to one picture each."""
        if chunk.continuation_group is not None:
            if cross_kv := last_prompt_token_cross_kv(chunk.sequence, self.encoder_cache):
                yield slice(start, end), cross_kv
            return
        prompt = chunk.sequence.request_state.request.prompt
        image_indices = [
            prompt.image_index[min(token, len(prompt) - 1)] for token in range(chunk.start, chunk.end)
        ]
        for index, token_run in groupby(image_indices):
            count = len(list(token_run))
            if index >= 0:
                yield slice(start, start + count), self.encoder_cache.cross_kv(prompt.pictures[index])
            start += count


def _pack_chunk(chunk: PrefillChunk, token_slice: slice) -> tuple[Tensor, Tensor, PackedChunk]:
    """The ids and positions of a chunk's tokens, (n,) each, and the chunk in the form that `PrefillAttn` takes."""
    sequence = chunk.sequence
    if chunk.continuation_group is None:
        return (
            torch.tensor(sequence.ids[chunk.start : chunk.end]),
            torch.arange(chunk.start, chunk.end),
            PackedChunk(token_slice, chunk.start, sequence.pages),
        )
    scores, num_previous_tokens = sequence.request_state.continuation_scores, sequence.num_computed_tokens
    assert scores is not None, "continuations are grouped when the prompt is computed"
    trie = scores.trie_by_group[chunk.continuation_group]
    return (
        trie.ids,
        num_previous_tokens + trie.depths,
        PackedChunk(token_slice, num_previous_tokens, sequence.pages, trie),
    )
