"""How much memory the engine's cache may take, and in which dtype it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from idefics.config import CacheLayout, EngineConfig
from idefics.engine.contract import VLM
from idefics.engine.native.description import linears
from idefics.engine.pages import PAGE
from idefics.quant.integers import Int4Linear, Int8Linear


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


def page_count(layout: CacheLayout, dtype: torch.dtype, device: torch.device, config: EngineConfig) -> int:
    """How many pages the cache has, the unused page 0 among them.

    As many as `cache_share` of the free memory holds; never more than twice what `batch_rows` rows can fill: the rows'
    own, and as much again of what may be asked for once more.
    """
    if config.cache_pages is not None:
        return config.cache_pages
    page_bytes = 2 * layout.layers * layout.kv_heads * layout.head_size * PAGE * dtype.itemsize
    most = 2 * config.batch_rows * -(-layout.max_positions // PAGE)
    return 1 + max(1, min(most, int(config.cache_share * free_memory(device)) // page_bytes))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    if device.type == "mps":
        most: int = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return most
    told = Path("/proc/meminfo")
    if told.exists():  # Linux says what programs can have without others being swapped out
        lines = (line.split() for line in told.read_text().splitlines())
        return next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
