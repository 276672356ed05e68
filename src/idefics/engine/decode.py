"""One token more of each row, over pages: the step that an answer is made of, and who computes it.

R rows, P pages of the longest row, h key/value heads, H query heads, K head size, V vocabulary. Chooses no tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idefics.engine.kv_cache import PagedKVCache, cast_to_cache_dtype
from idefics.engine.model_interface import VLM
from idefics.engine.native import NativeDecode, unsupported_reason
from idefics.engine.page_pool import PAGE_SIZE
from idefics.nn.attention import CrossKV, LayerCrossKV, causal_window_mask
from idefics.nn.attention_backends import native_or_sdpa_attention, sdpa_attention

log = logging.getLogger(__name__)


@dataclass(slots=True)
class DecodeInputs:
    """What is read in one step. While the same rows go on, `page_tables` and `cross_kvs` stay the same objects.

    Attributes:
        ids: (R,) int64: the tokens to be read.
        positions: (R,) int64: where they stand.
        page_tables: (R, P) int32: which page holds positions 16j and on; 0 beyond the row's end. The page that holds a
            row's position is owned by that row alone.
        cross_kvs: for each row what it sees: (1, M, H, K) keys and values for each cross layer, or nothing.
        max_position, min_position: the highest and the lowest of `positions`, known to the host.
    """

    ids: Tensor
    positions: Tensor
    page_tables: Tensor
    cross_kvs: Sequence[CrossKV]
    max_position: int
    min_position: int


class DecodeStep(Protocol):
    """Reads one token more of each row."""

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """The tokens' keys and values go into the cache: -> (R, V) float32 logits of the next ones."""
        ...


def choose_decode_step(model: VLM, cache: PagedKVCache, *, reference: bool = False) -> DecodeStep:
    """The quickest step for a model and its cache, chosen once; the log says why where it is torch's plain one.

    Args:
        reference: torch's plain one in any case.
    """
    if reference:
        return TorchDecode(model, cache)
    parts, reason = model.decoder_parts(), unsupported_reason(model, cache)
    if reason is None and model.attention_backend not in (native_or_sdpa_attention, sdpa_attention):
        reason = "another attn_implementation was asked for"
    if parts is not None and reason is None:
        return NativeDecode(parts, cache)
    devices = {weight.device for weight in model.parameters()}
    if {device.type for device in devices} == {"cuda"} and len(devices) == 1:
        from idefics.engine.cuda_graphs import CudaGraphDecode, CudaGraphRecorder

        return CudaGraphDecode(model, cache, CudaGraphRecorder(devices.pop()))
    log.info("decode steps are computed by torch: %s", reason)
    return TorchDecode(model, cache)


class TorchDecode:
    """In plain torch, on every device: gathers each row's pages and attends to them."""

    def __str__(self) -> str:
        return "torch"

    def __init__(self, model: VLM, cache: PagedKVCache) -> None:
        self.model, self.cache = model, cache
        self.batched_cross_kv = BatchedCrossKV(())

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        if inputs.cross_kvs is not self.batched_cross_kv.cross_kvs:
            self.batched_cross_kv = BatchedCrossKV(inputs.cross_kvs)
        attn = TorchDecodeAttn(self.model, self.cache, inputs, self.batched_cross_kv)
        h = self.model.forward(self.model.embed(inputs.ids), inputs.positions, attn)
        return self.model.logits(h).float()


class BatchedCrossKV:
    """The pictures that rows see, side by side: made when the rows change.

    Attributes:
        image_rows: (S,) the rows that see one.
        layers: (S, M, H, K) keys and values of their pictures for each cross layer; empty where S is 0.
    """

    def __init__(self, cross_kvs: Sequence[CrossKV]) -> None:
        self.cross_kvs = cross_kvs
        rows = [row for row, memory in enumerate(cross_kvs) if memory]
        self.image_rows = torch.tensor(rows, dtype=torch.long)
        layers = zip(*(cross_kvs[row] for row in rows), strict=True)
        self.layers = [
            LayerCrossKV(torch.cat([one.keys for one in layer]), torch.cat([one.values for one in layer]))
            for layer in layers
        ]


class TorchDecodeAttn:
    """One new token in each row, which joins the cache and sees its row, as far back as the window."""

    def __init__(
        self, model: VLM, cache: PagedKVCache, inputs: DecodeInputs, batched_cross_kv: BatchedCrossKV
    ) -> None:
        self.cache, self.backend, self.batched_cross_kv = cache, model.attention_backend, batched_cross_kv
        window, heads = cache.layout.sliding_window, cache.layout.num_kv_heads
        self.num_positions = inputs.max_position + 1
        first_page = 0 if window is None else max(0, inputs.min_position + 1 - window) // PAGE_SIZE
        page_tables = inputs.page_tables[
            :, first_page : -(-self.num_positions // PAGE_SIZE)
        ].long()  # (R, P) the pages that are seen
        self.num_positions -= first_page * PAGE_SIZE
        device = page_tables.device
        # Rows of (pages * h, 16 * K): one copy brings keys into the order in which they are read.
        self.gather_index = (
            page_tables[:, None] * heads + torch.arange(heads, device=device)[:, None]
        ).flatten()
        pages = inputs.page_tables.gather(1, (inputs.positions // PAGE_SIZE)[:, None])  # (R, 1)
        self.write_index = pages[:, 0].long(), inputs.positions % PAGE_SIZE
        self.mask = None  # (R, 1, 1, L)
        if inputs.min_position < inputs.max_position:
            key_positions = torch.arange(first_page * PAGE_SIZE, inputs.max_position + 1, device=device)
            self.mask = causal_window_mask(inputs.positions, key_positions, window)[:, None, None]
        elif window is not None and (num_skipped := self.num_positions - window) > 0:
            self.mask = torch.arange(self.num_positions, device=device)[None, None, None] >= num_skipped

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.layer_kv(layer, k.device)
        pages, offsets = (x.to(k.device) for x in self.write_index)
        keys[pages, :, offsets] = cast_to_cache_dtype(k, keys.dtype)
        values[pages, :, offsets] = cast_to_cache_dtype(v, values.dtype)
        gathered = (self._gather_pages(pages, len(q)).to(q.dtype) for pages in (keys, values))
        # Query heads that share a key head are taken for that head's queries: no key is copied.
        q = q.unflatten(1, (k.shape[1], -1))  # (R, h, H/h, K)
        out = self.backend(q, *gathered, mask=self.mask if self.mask is None else self.mask.to(q.device))
        return out.flatten(1, 2)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        if self.batched_cross_kv.layers:
            keys, values = (x.transpose(1, 2) for x in self.batched_cross_kv.layers[layer])  # (S, H, M, K)
            image_rows = self.batched_cross_kv.image_rows.to(q.device)
            out[image_rows] = self.backend(q[image_rows, :, None], keys, values).squeeze(2)
        return out

    def _gather_pages(self, pages: Tensor, num_rows: int) -> Tensor:
        """(pages, h, 16, K) -> (R, h, L, K): each row's own."""
        _, heads, _, size = pages.shape
        flat = pages.view(-1, PAGE_SIZE * size).index_select(0, self.gather_index.to(pages.device))
        return flat.view(num_rows, heads, -1, size)[:, :, : self.num_positions]
