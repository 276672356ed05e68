"""Calls the C kernel for attention without a mask, in float32 (`native/attention.c`).

Twice as fast as torch's kernel with AVX-512; elsewhere torch's is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.native import library
from idefics.native.structures import AttentionArgs

MIN_QUERIES = 16  # with fewer, packing the keys costs more than the kernel wins


def can_use_native_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `native_attention` supports these tensors and is faster than torch."""
    return (
        q.shape[2] >= MIN_QUERIES
        and all(
            x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1 and not x.requires_grad
            for x in (q, k, v)
        )
        and library.best_instruction_set("attention") is not None
        and (torch.get_num_threads() == 1 or library.gomp_parallel_address() is not None)
    )


def native_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v: (B, H, T, K), (B, h, L, K) twice -> (B, H, T, K), laid out as (B, T, H, K)."""
    kernels = library.load_library()
    assert kernels is not None, "see can_use_native_attention"
    frames, heads, queries, size = q.shape
    out = q.new_empty(frames, queries, heads, size).transpose(1, 2)
    args = AttentionArgs(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(stride for x in (q, k, v, out) for stride in x.stride()[:3]),
        *(frames, heads, k.shape[1], queries, k.shape[2], size, size**-0.5),
    )
    if not kernels.idefics_attention(args, torch.get_num_threads(), library.gomp_parallel_address()):
        raise MemoryError(f"not enough memory for attention to {k.shape[2]} keys")
    return out
