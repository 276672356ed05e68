"""Decode steps: one token of each row through the model, over the paged KV cache; and the choice of implementation.

`PagedDecodeAttn` is the attention of a step in torch: it writes the new keys and values. Of its subclasses
`PagedInPlace` attends where torch has a kernel that reads pages, else `GatheredPages`.

R rows, P pages of the longest row, L positions, S rows with a picture, H query heads, h key/value heads, K head size, M
feature rows of a picture, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Protocol

import torch
from torch import Tensor

from idefics.engine.decode_inputs import DecodeInputs
from idefics.engine.kv_cache import PagedKVCache, cast_to_cache_dtype, gather_pages, page_gather_index
from idefics.engine.model_interface import VLM
from idefics.engine.native.decode import NativeDecode, unsupported_reason
from idefics.engine.page_pool import PAGE_SIZE
from idefics.nn.attention import CrossKV, LayerCrossKV, causal_window_mask
from idefics.nn.attention_backends import (
    SDPA_BACKENDS,
    AttentionBackend,
    flash_attention,
    native_or_sdpa_attention,
    sdpa_attention,
)

CrossAttend = Callable[[int, Tensor, AttentionBackend], Tensor]
HALF_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(eq=False)
class PagedDecodeAttn:
    """Attention of a decode step: writes each row's new key and value, then attends to the row's pages.

    Created for each step and used in every layer; subclasses read the pages in different ways.

    Attributes:
        page_tables: (R, P) int32 pages of each row.
        positions: (R,) the positions of the new tokens, the last that they attend to.
        cross_attend: cross-attention of each row to its picture, as `BatchedCrossKV.cross_attend`.
        position_range: the lowest and the highest of `positions`, if the host knows them.
    """

    cache: PagedKVCache
    page_tables: Tensor
    positions: Tensor
    cross_attend: CrossAttend
    backend: AttentionBackend
    position_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.window = self.cache.layout.sliding_window
        pages = self.page_tables.gather(1, (self.positions // PAGE_SIZE)[:, None])[:, 0]
        self.write_index = pages.long(), self.positions % PAGE_SIZE
        self._prepare_step()

    def _prepare_step(self) -> None:
        """Computes what all layers of a step share, such as masks and page indices."""
        raise NotImplementedError

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends to each row's pages: (R, H, K), a layer's keys and values (pages, h, 16, K) -> (R, H, K)."""
        raise NotImplementedError

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within the sliding window: (R, H, K), (R, h, K), (R, h, K) -> (R, H, K)."""
        keys, values = self.cache.layer_kv(layer, k.device)
        pages, offsets = (x.to(k.device) for x in self.write_index)
        keys[pages, :, offsets] = cast_to_cache_dtype(k, keys.dtype)
        values[pages, :, offsets] = cast_to_cache_dtype(v, values.dtype)
        return self.attend(q, keys, values)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Attends to each row's picture: (R, H, K) -> (R, H, K), 0 for rows without one."""
        return self.cross_attend(layer, q, self.backend)


def concatenate_cross_kvs(cross_kvs: Iterable[CrossKV]) -> list[LayerCrossKV]:
    """Concatenates the keys and values of S pictures for each cross-attention layer: (1, M, H, K) -> (S, M, H, K)."""
    return [LayerCrossKV(*map(torch.cat, zip(*layer, strict=True))) for layer in zip(*cross_kvs, strict=True)]


class BatchedCrossKV:
    """The cross-attention keys and values of the rows that have a picture, concatenated. Rebuilt when rows change.

    Attributes:
        cross_kvs: the keys and values of each row that it was built from.
        image_rows: (S,) the rows that have a picture.
        layers: for each cross-attention layer (S, M, H, K) keys and values; empty if S is 0.
    """

    def __init__(self, cross_kvs: Sequence[CrossKV]) -> None:
        self.cross_kvs = cross_kvs
        rows = [row for row, cross_kv in enumerate(cross_kvs) if cross_kv]
        self.image_rows = torch.tensor(rows, dtype=torch.long)
        self.layers = concatenate_cross_kvs(cross_kvs[row] for row in rows)

    def cross_attend(self, layer: int, q: Tensor, backend: AttentionBackend) -> Tensor:
        """Attends from the rows that have a picture to it: (R, H, K) queries -> (R, H, K), 0 in other rows."""
        out = torch.zeros_like(q)
        if self.layers:
            keys, values = (x.transpose(1, 2) for x in self.layers[layer])  # (S, H, M, K)
            image_rows = self.image_rows.to(q.device)
            out[image_rows] = backend(q[image_rows, :, None], keys, values).squeeze(2)
        return out


class GatheredPages(PagedDecodeAttn):
    """Copies each row's pages into one tensor, then attends with the model's backend under a mask.

    With a `position_range` only pages up to the highest position are gathered. Without it shapes are fixed by P and
    nothing is read on the host, as a CUDA graph requires.
    """

    def _prepare_step(self) -> None:
        """Computes which pages are gathered and which of their positions are masked."""
        page_tables, positions, window = self.page_tables, self.positions, self.window
        if self.position_range is None:
            page_tables, key_positions = _visible_pages(page_tables, positions, window)
            is_all_visible = False
        else:
            lowest, highest = self.position_range
            first_page = 0 if window is None else max(0, lowest + 1 - window) // PAGE_SIZE
            page_tables = page_tables[:, first_page : highest // PAGE_SIZE + 1]
            key_positions = torch.arange(first_page * PAGE_SIZE, highest + 1, device=page_tables.device)
            is_all_visible = lowest == highest and (window is None or len(key_positions) <= window)
        mask = None if is_all_visible else causal_window_mask(positions, key_positions, window)  # (R, L)
        self.mask = None if mask is None else mask[:, None, None]
        self.num_positions = key_positions.shape[-1]
        self.gather_index = page_gather_index(page_tables, self.cache.layout.num_kv_heads)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Gathers each row's pages and attends to them; arguments as in `PagedDecodeAttn.attend`."""
        # Query heads that share a key head become queries of that head: keys are not repeated.
        grouped = q.unflatten(1, (keys.shape[1], -1))  # (R, h, H/h, K)
        gathered = (
            gather_pages(pages, self.gather_index, len(q))[:, :, : self.num_positions].to(q.dtype)
            for pages in (keys, values)
        )
        out = self.backend(grouped, *gathered, mask=None if self.mask is None else self.mask.to(q.device))
        return out.flatten(1, 2)


class PagedInPlace(PagedDecodeAttn):
    """torch's FlashAttention, which reads keys and values from pages by the page tables."""

    def _prepare_step(self) -> None:
        """Computes the arguments of torch's varlen attention that all layers share."""
        from torch.nn.attention.varlen import varlen_attn

        self.varlen_attention = varlen_attn
        self.contiguous_tables, self.lengths = self.page_tables.contiguous(), (self.positions + 1).int()
        self.query_offsets = torch.arange(
            len(self.page_tables) + 1, dtype=torch.int32, device=self.positions.device
        )
        self.max_length = self.page_tables.shape[1] * PAGE_SIZE
        self.window_size = (-1, -1) if self.window is None else (self.window - 1, 0)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends to each row's pages in place; arguments as in `PagedDecodeAttn.attend`."""
        out = self.varlen_attention(
            q,
            keys.transpose(1, 2),  # (pages, 16, h, K), a view
            values.transpose(1, 2),
            self.query_offsets,
            None,
            1,
            self.max_length,
            window_size=self.window_size,
            enable_gqa=True,
            seqused_k=self.lengths,
            block_table=self.contiguous_tables,
        )
        assert isinstance(out, Tensor)
        return out


def choose_decode_attention(cache: PagedKVCache, backend: AttentionBackend) -> type[PagedDecodeAttn]:
    """The class for a cache: `PagedInPlace` if supported, as it reads keys once; else `GatheredPages`, which copies."""
    is_supported = backend in (native_or_sdpa_attention, flash_attention, sdpa_attention)
    return PagedInPlace if is_supported and probe_in_place_attention(cache) else GatheredPages


def probe_in_place_attention(cache: PagedKVCache) -> bool:
    """Whether torch's FlashAttention gives correct results on pages of this cache; runs a small test to find out.

    Of torch 2.13's kernels FlashAttention 3 and 4 support pages of 16 positions. They are installed separately and
    activated with `torch.nn.attention.activate_flash_attention_impl`; the built-in FlashAttention 2 does not.
    """
    keys = cache.keys[0]
    if keys.device.type != "cuda" or keys.dtype not in HALF_DTYPES:
        return False
    from torch.nn.attention import varlen  # late: it imports torch's compiler, which takes a second

    if "block_table" not in signature(varlen.varlen_attn).parameters:
        return False
    layout, num_positions = cache.layout, 3 * PAGE_SIZE
    pages = [torch.randn(4, *keys.shape[1:], dtype=keys.dtype, device=keys.device) for _ in range(2)]
    tables = torch.tensor([[2, 3, 1], [1, 0, 0]], dtype=torch.int32, device=keys.device)
    positions = torch.tensor([num_positions - 5, 3], device=keys.device)
    q = torch.randn(2, layout.num_kv_heads, layout.head_size, dtype=keys.dtype, device=keys.device)
    step = cache, tables, positions, BatchedCrossKV(()).cross_attend, sdpa_attention
    try:
        result = PagedInPlace(*step).attend(q, *pages)
    except (RuntimeError, ValueError, NotImplementedError):  # not supported by this torch or this device
        return False
    expected = GatheredPages(*step).attend(q, *pages)
    return bool(torch.isclose(result, expected, rtol=0.02, atol=0.02).all())


def _visible_pages(page_tables: Tensor, positions: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """The pages that hold each row's sliding window, (R, P') with P' fixed by P, and their L positions.

    Without a window these are all pages. The positions are (R, L), or (1, L) where they are the same in all rows.
    """
    num_pages, device = page_tables.shape[1], page_tables.device
    num_window_pages = num_pages if window is None else -(-window // PAGE_SIZE) + 1
    if window is None or num_window_pages >= num_pages:
        return page_tables, torch.arange(num_pages * PAGE_SIZE, device=device)[None]
    first_pages = (positions + 1 - window).clamp(min=0) // PAGE_SIZE  # (R,)
    columns = first_pages[:, None] + torch.arange(num_window_pages, device=device)
    offsets = torch.arange(num_window_pages * PAGE_SIZE, device=device)
    visible_tables = page_tables.gather(1, columns.clamp(max=num_pages - 1))
    return visible_tables, first_pages[:, None] * PAGE_SIZE + offsets


log = logging.getLogger(__name__)


class DecodeStep(Protocol):
    """An implementation of the decode step for one model and cache."""

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """Writes the tokens' keys and values to the cache; returns (R, V) float32 next-token logits."""
        ...


def choose_decode_step(
    model: VLM, cache: PagedKVCache, *, has_adapters: bool = False, reference: bool = False
) -> DecodeStep:
    """The fastest decode step for a model and its cache: native on the CPU, CUDA graphs on one GPU, else torch.

    Where the native one does not support a model on the CPU, the log says why.

    Args:
        has_adapters: rows may have adapters, which a CUDA graph cannot choose.
        reference: use `TorchDecode` in any case.
    """
    if reference:
        return TorchDecode(model, cache)
    parts, reason = model.decoder_parts(), unsupported_reason(model, cache)
    if reason is None and model.attention_backend not in SDPA_BACKENDS:
        reason = "another attn_implementation was chosen"
    if parts is not None and reason is None:
        return NativeDecode(parts, cache)
    devices = {weight.device for weight in model.parameters()}
    if {device.type for device in devices} == {"cuda"} and len(devices) == 1 and not has_adapters:
        from idefics.engine.cuda_graphs import CudaGraphDecode, CudaGraphRecorder

        return CudaGraphDecode(model, cache, CudaGraphRecorder(devices.pop()))
    log.info("decode steps are computed by torch: %s", reason)
    return TorchDecode(model, cache)


class TorchDecode:
    """The decode step in eager PyTorch, for any device and for models spread over several devices."""

    def __str__(self) -> str:
        return "torch"

    def __init__(self, model: VLM, cache: PagedKVCache) -> None:
        self.model, self.cache = model, cache
        self.batched_cross_kv = BatchedCrossKV(())

    def __call__(self, inputs: DecodeInputs) -> Tensor:
        """Writes the tokens' keys and values to the cache; returns (R, V) float32 next-token logits."""
        if inputs.cross_kvs is not self.batched_cross_kv.cross_kvs:
            self.batched_cross_kv = BatchedCrossKV(inputs.cross_kvs)
        attn = GatheredPages(
            self.cache,
            inputs.page_tables,
            inputs.positions,
            self.batched_cross_kv.cross_attend,
            self.model.attention_backend,
            (inputs.min_position, inputs.max_position),
        )
        h = self.model.forward(self.model.embed(inputs.ids), inputs.positions, attn)
        return self.model.logits(h).float()
