"""The inputs of a prefill pass: the tokens of several chunks packed one after another, without padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from idefics.engine.decode_inputs import last_prompt_token_cross_kv
from idefics.engine.encoder_cache import EncoderCache
from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.model_interface import VLM
from idefics.engine.prefill_attention import PrefillAttn
from idefics.engine.scheduler_output import PrefillChunk
from idefics.nn.attention import CrossKV


class PrefillInputs(NamedTuple):
    """The arguments of `VLM.forward` for N packed tokens of width D.

    Attributes:
        embeddings: (N, D)
        positions: (N,)
        attn: attention within the chunks' sequences, and to their pictures.
    """

    embeddings: Tensor
    positions: Tensor
    attn: PrefillAttn


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
        starts = list(accumulate((chunk.num_tokens for chunk in prefill_chunks[:-1]), initial=0))
        ids, positions = zip(*map(_ids_and_positions, prefill_chunks), strict=True)
        x = self.model.embed(torch.cat(ids).to(self.device))  # (N, D)
        cross_attention_spans: list[tuple[slice, CrossKV]] = []
        for chunk, start in zip(prefill_chunks, starts, strict=True):
            if self.uses_cross_attention:
                cross_attention_spans += self._cross_attention_spans(chunk, start)
            elif chunk.trie is None:
                self._insert_image_features(x, chunk, start)
        attn = PrefillAttn(self.cache, prefill_chunks, cross_attention_spans, self.model.attention_backend)
        return PrefillInputs(x, torch.cat(positions).to(x.device), attn)

    def _insert_image_features(self, x: Tensor, chunk: PrefillChunk, start: int) -> None:
        """Replaces the embeddings of a chunk's image tokens, from index `start` of (N, D), by image features."""
        prompt = chunk.sequence.request_state.request.prompt
        for image, positions in zip(prompt.pictures, prompt.image_token_positions, strict=True):
            first, last = bisect_left(positions, chunk.start), bisect_left(positions, chunk.end)
            if first < last:
                rows = torch.tensor(positions[first:last], device=x.device) + (start - chunk.start)
                x[rows] = self.encoder_cache.features(image)[first:last].to(x.device)

    def _cross_attention_spans(self, chunk: PrefillChunk, start: int) -> Iterator[tuple[slice, CrossKV]]:
        """The packed tokens of a chunk, from index `start`, that attend to one picture each."""
        if chunk.trie is not None:
            if cross_kv := last_prompt_token_cross_kv(chunk.sequence, self.encoder_cache):
                yield slice(start, start + chunk.num_tokens), cross_kv
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


def _ids_and_positions(chunk: PrefillChunk) -> tuple[Tensor, Tensor]:
    """The ids and positions of a chunk's tokens, (n,) each."""
    if chunk.trie is not None:
        return chunk.trie.ids, chunk.start + chunk.trie.depths
    return torch.tensor(chunk.sequence.ids[chunk.start : chunk.end]), torch.arange(chunk.start, chunk.end)
