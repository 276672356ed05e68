"""The number of pages of the KV cache, and its dtype."""

from __future__ import annotations

import torch

from idefics.config import EngineConfig, KVCacheLayout
from idefics.engine.model_interface import VLM
from idefics.engine.native.native_model import list_linears
from idefics.engine.page_pool import PAGE_SIZE
from idefics.errors import BadSetting, OutOfMemory, format_bytes
from idefics.host_memory import default_kv_cache_bytes
from idefics.placement.devices import free_memory
from idefics.quant.linear import Int4Linear, Int8Linear

DEFAULT_MEMORY_FRACTION = 0.3
MIN_CACHE_TOKENS = 512  # enough for one picture and a short answer


def kv_cache_dtype(model: VLM) -> torch.dtype:
    """The dtype of the KV cache: the model's dtype, but float16 for an int8 or int4 decoder on the CPU.

    With long contexts a decode step is bound by reading keys and values; float16 halves them, and its rounding error is
    smaller than that of the quantized weights. Other models keep their dtype, so that caching changes no token.
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
    """The number of pages of the cache, page 0 included, which is never allocated.

    From `config.cache_pages` or `config.kv_cache`; by default as many as fit into `host_memory.default_kv_cache_bytes`,
    but at most `DEFAULT_MEMORY_FRACTION` of the free memory. Never more than twice what `batch_rows` sequences of the
    greatest length fill: one half for them, the other for cached prefixes.

    Args:
        free_bytes: memory that the cache may use; None: what is free on the device now.

    Raises:
        BadSetting: `config.kv_cache` is too small for `MIN_CACHE_TOKENS` tokens.
        OutOfMemory: `config.kv_cache` is larger than the free memory, or that is too small for `MIN_CACHE_TOKENS`.
    """
    if config.cache_pages is not None:
        return config.cache_pages
    max_pages_per_sequence = -(-layout.max_positions // PAGE_SIZE)
    page_bytes = PAGE_SIZE * kv_bytes_per_token(layout, dtype)
    min_bytes = page_bytes * min(max_pages_per_sequence, MIN_CACHE_TOKENS // PAGE_SIZE)
    free_bytes = free_memory(device) if free_bytes is None else free_bytes
    kv_cache = config.kv_cache
    if kv_cache is None:
        default_bytes = default_kv_cache_bytes(kv_bytes_per_token(layout, dtype), layout.max_positions)
        budget_bytes = max(min(default_bytes, int(DEFAULT_MEMORY_FRACTION * free_bytes)), min_bytes)
    elif isinstance(kv_cache, int):
        budget_bytes, setting_text = kv_cache, f"{kv_cache:,} bytes"
    else:
        budget_bytes = int(kv_cache * free_bytes)
        setting_text = f"{kv_cache!r}, {format_bytes(budget_bytes)} now"
    if budget_bytes < min_bytes:
        raise BadSetting(f"kv_cache is {setting_text}; give at least {format_bytes(min_bytes)}")
    if budget_bytes > free_bytes:
        raise OutOfMemory(
            "the cache of keys and values (kv_cache)",
            budget_bytes,
            free_bytes,
            "give less, or end other programs",
        )
    return 1 + min(2 * config.batch_rows * max_pages_per_sequence, budget_bytes // page_bytes)


def kv_bytes_per_token(layout: KVCacheLayout, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    return 2 * layout.num_layers * layout.num_kv_heads * layout.head_size * dtype.itemsize
