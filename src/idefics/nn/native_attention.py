"""Calls the C kernels for attention (`native/attention.c`, `native/attention_bfloat16.c`).

In float32 without a mask, twice as fast as torch's kernel with AVX-512; and with inputs and attention weights rounded
to bfloat16, causal too, where the processor multiplies them. Elsewhere torch's kernels are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.native import library
from idefics.native.library import Kernel
from idefics.native.structures import AttentionArgs
from idefics.nn.native_linear import call_kernel

MIN_QUERIES = 16  # with fewer, packing the keys costs more than the kernels win


def can_use_native_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `native_attention` supports these tensors and is faster than torch."""
    return _can_use_kernel("attention", q, k, v)


def native_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in C in float32: softmax(q k' / sqrt(K)) v, (B, H, T, K), (B, h, L, K) twice -> (B, H, T, K).

    The result is laid out in memory as (B, T, H, K).
    """
    return _call_kernel("idefics_attention", q, k, v, causal=False)


def can_use_bfloat16_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `bfloat16_attention` supports these tensors and is faster than torch."""
    return q.shape[-1] % 2 == 0 and _can_use_kernel("bfloat16 products", q, k, v)


def bfloat16_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """`native_attention` that rounds inputs and attention weights to bfloat16; softmax and sums are float32.

    Args:
        q: (B, H, T, K).
        k, v: (B, h, L, K).
        causal: whether query t attends to keys up to L - T + t only. Its result does not depend on other queries.
    """
    return _call_kernel("idefics_attention_bfloat16", q, k, v, causal=causal)


def _can_use_kernel(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a C kernel supports these tensors and this processor, and is faster for so many queries."""
    return (
        q.shape[2] >= MIN_QUERIES
        and all(
            x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1 and not x.requires_grad
            for x in (q, k, v)
        )
        and library.best_instruction_set(kernel) is not None
        and (torch.get_num_threads() == 1 or library.gomp_parallel_address() is not None)
    )


def _call_kernel(function: str, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Calls an attention function of the C library by its name; arguments as in `bfloat16_attention`."""
    frames, heads, queries, size = q.shape
    out = q.new_empty(frames, queries, heads, size).transpose(1, 2)
    args = AttentionArgs(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(stride for x in (q, k, v, out) for stride in x.stride()[:3]),
        *(frames, heads, k.shape[1], queries, k.shape[2], size, size**-0.5, causal),
    )
    if not call_kernel(function, args):
        raise MemoryError(f"not enough memory for attention to {k.shape[2]} keys")
    return out
