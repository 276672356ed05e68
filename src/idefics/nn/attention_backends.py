"""Attention backends: functions that compute softmax(q k' / sqrt(K)) v. One is set in a model when it is loaded.

B rows, T queries, L keys, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from typing import Protocol, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import dropout, scaled_dot_product_attention, softmax

from idefics.errors import BadSetting
from idefics.nn.native_kernels import (
    can_use_native_attention,
    native_attention,
)


class AttentionOptions(TypedDict, total=False):
    """Options of an attention backend.

    Attributes:
        mask: broadcastable to (B, H, T, L); True: the query attends to the key. Not together with `causal`.
        causal: whether query t attends to keys up to L - T + t only.
        dropout_p: probability with which each attention weight is dropped, in training.
    """

    mask: Tensor | None
    causal: bool
    dropout_p: float


class AttentionBackend(Protocol):
    """An implementation of attention: q (B, H, T, K), k and v (B, h, L, K) -> (B, H, T, K)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Unpack[AttentionOptions]) -> Tensor: ...


def sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """`AttentionBackend` by torch's `scaled_dot_product_attention`, which picks its fastest kernel."""
    if causal and q.shape[2] != k.shape[2]:  # torch's would let query t attend to keys up to t
        mask, causal = causal_mask(q, k), False
    if mask is not None and q.is_cuda:
        k, v = repeat_kv(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=causal, enable_gqa=grouped)


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """The mask of causal attention, (T, L) bool: True where query t may attend to a key, up to L - T + t."""
    queries, keys = q.shape[2], k.shape[2]
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)


def repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Repeats keys and values so that each query head has its own: (B, h, L, K) -> (B, H, L, K).

    Needed with a mask on CUDA: the memory-efficient kernel does not support grouped heads, and torch would fall back to
    one that computes a (T, L) matrix for each head.
    """
    num_repeats = q.shape[1] // k.shape[1]
    if num_repeats == 1:
        return k, v
    return k.repeat_interleave(num_repeats, dim=1), v.repeat_interleave(num_repeats, dim=1)


def native_or_sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """`AttentionBackend` by the float32 C kernel where it is faster, on a CPU without mask or gradients.

    Else by `sdpa_attention`.
    """
    if mask is None and not causal and not dropout_p and can_use_native_attention(q, k, v):
        return native_attention(q, k, v)
    return sdpa_attention(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p)


def bfloat16_or_sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """`AttentionBackend` by the C kernel that multiplies in bfloat16, on a CPU without mask or gradients.

    Else by `sdpa_attention`.
    """
    if mask is None and not dropout_p and can_use_native_attention(q, k, v, bfloat16=True):
        return native_attention(q, k, v, bfloat16=True, causal=causal)
    return sdpa_attention(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, **options: Unpack[AttentionOptions]) -> Tensor:
    """`AttentionBackend` by torch's FlashAttention-2 (arXiv 2307.08691); with a mask, by another of torch's kernels."""
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return sdpa_attention(q, k, v, **options)


class EagerAttention:
    """Plain torch operations, softmax in float32; records the attention weights.

    Attributes:
        attention_weights: (B, H, T, L) for each call so far.
    """

    def __init__(self) -> None:
        self.attention_weights: list[Tensor] = []

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        dropout_p: float = 0.0,
    ) -> Tensor:
        k, v = repeat_kv(q, k, v)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            mask = causal_mask(q, k)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        self.attention_weights.append(weights)
        return dropout(weights, dropout_p) @ v


def eager_attention(q: Tensor, k: Tensor, v: Tensor, **options: Unpack[AttentionOptions]) -> Tensor:
    """`AttentionBackend` in plain torch operations, with the softmax in float32: the reference for the others."""
    return EagerAttention()(q, k, v, **options)


# Those of attn_implementation="sdpa", by device and kernels.
SDPA_BACKENDS = (sdpa_attention, native_or_sdpa_attention, bfloat16_or_sdpa_attention)

# By the names that transformers uses for `attn_implementation`.
ATTENTION_BACKENDS: dict[str, AttentionBackend] = {
    "sdpa": native_or_sdpa_attention,
    "eager": eager_attention,
    "flash_attention_2": flash_attention,
}


def get_attention_backend(name: str, dtype: torch.dtype, device: torch.device) -> AttentionBackend:
    """The attention backend with a name in `ATTENTION_BACKENDS`, for a model of this dtype on this device.

    Raises:
        BadSetting: unknown name, or FlashAttention without what it requires: a CUDA device of compute capability 8.0
            and float16 or bfloat16 weights.
    """
    if not isinstance(name, str) or name not in ATTENTION_BACKENDS:
        raise BadSetting(f"attn_implementation is {name!r}; give {', '.join(ATTENTION_BACKENDS)}")
    if name == "flash_attention_2" and (reason := _flash_unavailable_reason(dtype, device)):
        raise BadSetting(f'flash_attention_2 cannot be used: {reason}; give attn_implementation="sdpa"')
    return ATTENTION_BACKENDS[name]


def _flash_unavailable_reason(dtype: torch.dtype, device: torch.device) -> str:
    """Why FlashAttention cannot be used; "" if it can."""
    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    if device.type != "cuda":
        return f"the model is on {device}, and it needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the weights are {str(dtype).removeprefix('torch.')}, and it needs float16 or bfloat16"
    return ""


class HasAttentionBackend(nn.Module):
    """Base class of modules with an `attention_backend`: attention layers, and whole models."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_backend: AttentionBackend = sdpa_attention


def set_attention_backend(model: nn.Module, backend: AttentionBackend) -> None:
    """Sets the attention backend of a model and of all its modules."""
    for module in model.modules():
        if isinstance(module, HasAttentionBackend):
            module.attention_backend = backend
