"""How much memory the engine's cache may take, and in which dtype it is."""

from __future__ import annotations

import torch

from idefics.config import CacheLayout, EngineConfig
from idefics.engine.contract import VLM
from idefics.engine.native.description import linears
from idefics.engine.pages import PAGE
from idefics.errors import BadSetting, OutOfMemory, size_text
from idefics.host_memory import cache_bytes
from idefics.placement import free_memory
from idefics.quant.integers import Int4Linear, Int8Linear

DEFAULT_SHARE = 0.3
FEWEST_TOKENS = 512  # with fewer hardly a picture could be asked about


def cache_dtype(model: VLM) -> torch.dtype:
    """In which keys and values are kept: as the model computes, but float16 beside a decoder of integers on a CPU.

    Long contexts are slow there because every key and value is read for each token, and float16 rounds them by less
    than the weights were rounded. Other models answer to the token as they do without a cache.
    """
    stack = model.stack()
    if stack is None or {weight.device.type for weight in model.parameters()} != {"cpu"}:
        return model.dtype
    integers = any(isinstance(layer, Int8Linear | Int4Linear) for layer in linears(stack))
    return torch.float16 if integers and model.dtype == torch.float32 else model.dtype


def page_count(
    layout: CacheLayout,
    dtype: torch.dtype,
    device: torch.device,
    config: EngineConfig,
    free: int | None = None,
) -> int:
    """How many pages the cache has, the unused page 0 among them.

    What `config` says; where it is silent as many as `host_memory.cache_bytes` holds, but no more than `DEFAULT_SHARE`
    of what is free. Never more than twice what `batch_rows` rows can fill: the rows' own, and as much again of what may
    be asked for once more.

    Args:
        free: bytes that there are for it; None: what is free on the device now.

    Raises:
        BadSetting: `config.kv_cache` is too little for `FEWEST_TOKENS` tokens.
        OutOfMemory: it is more than what is free, or what is free is too little.
    """
    if config.cache_pages is not None:
        return config.cache_pages
    longest, token = -(-layout.max_positions // PAGE), token_bytes(layout, dtype)
    free = free_memory(device) if free is None else free
    room = _room(layout.max_positions, token, free, config.kv_cache)
    return 1 + min(2 * config.batch_rows * longest, room // (PAGE * token))


def _room(longest: int, token: int, free: int, wanted: float | None) -> int:
    """Bytes that the cache may take, for a longest sequence in tokens and the bytes of one."""
    fewest = PAGE * token * min(-(-longest // PAGE), FEWEST_TOKENS // PAGE)
    if wanted is None:
        room = max(min(cache_bytes(token, longest), int(DEFAULT_SHARE * free)), fewest)
    else:
        room = wanted if isinstance(wanted, int) else int(wanted * free)
        if room < fewest:
            given = f"{wanted:,} bytes" if isinstance(wanted, int) else f"{wanted!r}, {size_text(room)} now"
            raise BadSetting(f"kv_cache is {given}; give at least {size_text(fewest)}")
    if room > free:
        raise OutOfMemory(
            "the cache of keys and values (kv_cache)", room, free, "give less, or end other programs"
        )
    return room


def token_bytes(layout: CacheLayout, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one token take, in all layers."""
    return 2 * layout.layers * layout.kv_heads * layout.head_size * dtype.itemsize
