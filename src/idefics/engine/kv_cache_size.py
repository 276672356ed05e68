"""How much memory the engine's cache may take, and in which dtype it is."""

from __future__ import annotations

import torch

from idefics.config import EngineConfig, KVCacheLayout
from idefics.engine.model_interface import VLM
from idefics.engine.native.native_model import list_linears
from idefics.engine.page_pool import PAGE_SIZE
from idefics.errors import BadSetting, OutOfMemory, format_bytes
from idefics.host_memory import default_kv_cache_bytes
from idefics.placement import free_memory
from idefics.quant.linear import Int4Linear, Int8Linear

DEFAULT_MEMORY_FRACTION = 0.3
MIN_CACHE_TOKENS = 512  # with fewer hardly a picture could be asked about


def kv_cache_dtype(model: VLM) -> torch.dtype:
    """In which keys and values are kept: as the model computes, but float16 beside a decoder of integers on a CPU.

    Long contexts are slow there because every key and value is read for each token, and float16 rounds them by less
    than the weights were rounded. Other models answer to the token as they do without a cache.
    """
    decoder_parts = model.decoder_parts()
    if decoder_parts is None or {weight.device.type for weight in model.parameters()} != {"cpu"}:
        return model.dtype
    is_integer_quantized = any(
        isinstance(layer, Int8Linear | Int4Linear) for layer in list_linears(decoder_parts)
    )
    return torch.float16 if is_integer_quantized and model.dtype == torch.float32 else model.dtype


def compute_num_pages(
    layout: KVCacheLayout,
    dtype: torch.dtype,
    device: torch.device,
    config: EngineConfig,
    free_bytes: int | None = None,
) -> int:
    """How many pages the cache has, the unused page 0 among them.

    What `config` says; where it is silent as many as `host_memory.cache_bytes` holds, but no more than `DEFAULT_MEMORY_FRACTION`
    of what is free. Never more than twice what `batch_rows` rows can fill: the rows' own, and as much again of what may
    be asked for once more.

    Args:
        free_bytes: bytes that there are for it; None: what is free on the device now.

    Raises:
        BadSetting: `config.kv_cache` is too little for `MIN_CACHE_TOKENS` tokens.
        OutOfMemory: it is more than what is free, or what is free is too little.
    """
    if config.cache_pages is not None:
        return config.cache_pages
    max_pages_per_sequence, bytes_per_token = (
        -(-layout.max_positions // PAGE_SIZE),
        kv_bytes_per_token(layout, dtype),
    )
    free_bytes = free_memory(device) if free_bytes is None else free_bytes
    budget_bytes = _choose_cache_bytes(layout.max_positions, bytes_per_token, free_bytes, config.kv_cache)
    return 1 + min(
        2 * config.batch_rows * max_pages_per_sequence, budget_bytes // (PAGE_SIZE * bytes_per_token)
    )


def _choose_cache_bytes(
    max_positions: int, bytes_per_token: int, free_bytes: int, kv_cache: float | None
) -> int:
    """Bytes that the cache may take, for a longest sequence in tokens and the bytes of one."""
    min_bytes = (
        PAGE_SIZE * bytes_per_token * min(-(-max_positions // PAGE_SIZE), MIN_CACHE_TOKENS // PAGE_SIZE)
    )
    if kv_cache is None:
        budget_bytes = max(
            min(
                default_kv_cache_bytes(bytes_per_token, max_positions),
                int(DEFAULT_MEMORY_FRACTION * free_bytes),
            ),
            min_bytes,
        )
    else:
        budget_bytes = kv_cache if isinstance(kv_cache, int) else int(kv_cache * free_bytes)
        if budget_bytes < min_bytes:
            setting_text = (
                f"{kv_cache:,} bytes"
                if isinstance(kv_cache, int)
                else f"{kv_cache!r}, {format_bytes(budget_bytes)} now"
            )
            raise BadSetting(f"kv_cache is {setting_text}; give at least {format_bytes(min_bytes)}")
    if budget_bytes > free_bytes:
        raise OutOfMemory(
            "the cache of keys and values (kv_cache)",
            budget_bytes,
            free_bytes,
            "give less, or end other programs",
        )
    return budget_bytes


def kv_bytes_per_token(layout: KVCacheLayout, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one token take, in all layers."""
    return 2 * layout.num_layers * layout.num_kv_heads * layout.head_size * dtype.itemsize
