"""The ways to compute softmax(q k' / sqrt(K)) v. A model is given one when it is built; nothing asks later.

B rows, T queries, L keys, H query heads, h key/value heads, K head size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import dropout, scaled_dot_product_attention, softmax

from idefics.errors import BadSetting
from idefics.nn.native_attention import can_use_native_attention, native_attention


class AttentionBackend(Protocol):
    """(B, H, T, K), (B, h, L, K) twice -> (B, H, T, K); in a mask, which may be broadcast, true is seen."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        dropout_p: float = 0.0,
    ) -> Tensor: ...


def sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """torch's best kernel for the device."""
    if mask is not None and q.is_cuda:
        k, v = repeat_kv(q, k, v)
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=causal, enable_gqa=grouped)


def repeat_kv(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with a head for each head of the queries.

    CUDA's kernel that takes a mask and holds no (T, L) matrix does not share heads: with shared ones torch would
    compute that matrix for every head.
    """
    num_repeats = q.shape[1] // k.shape[1]
    return (
        (k, v)
        if num_repeats == 1
        else (k.repeat_interleave(num_repeats, dim=1), v.repeat_interleave(num_repeats, dim=1))
    )


def native_or_sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Our own kernel for a processor, where every query sees every key and nothing is learned; else torch's."""
    if mask is None and not causal and not dropout_p and can_use_native_attention(q, k, v):
        return native_attention(q, k, v)
    return sdpa_attention(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """FlashAttention-2 (arXiv 2307.08691) as torch has it, which takes no mask; the next best kernel with one."""
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return sdpa_attention(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p)


class EagerAttention:
    """Every weight is computed, in float32, and kept.

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
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        self.attention_weights.append(weights)
        return dropout(weights, dropout_p) @ v


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """`EagerAttention`, for those who do not want the weights: the plain twin of the others."""
    return EagerAttention()(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p)


# By the names that users of the field know.
ATTENTION_BACKENDS: dict[str, AttentionBackend] = {
    "sdpa": native_or_sdpa_attention,
    "eager": eager_attention,
    "flash_attention_2": flash_attention,
}


def get_attention_backend(name: str, dtype: torch.dtype, device: torch.device) -> AttentionBackend:
    """The kernel by its name.

    Raises:
        BadSetting: no such name, or FlashAttention where it cannot be: it needs a CUDA device of compute capability
            8.0 (its own requirement) and 16-bit numbers.
    """
    if not isinstance(name, str) or name not in ATTENTION_BACKENDS:
        raise BadSetting(f"attn_implementation is {name!r}; give {', '.join(ATTENTION_BACKENDS)}")
    if name == "flash_attention_2" and (reason := _flash_unavailable_reason(dtype, device)):
        raise BadSetting(f'flash_attention_2 cannot be used: {reason}; give attn_implementation="sdpa"')
    return ATTENTION_BACKENDS[name]


def _flash_unavailable_reason(dtype: torch.dtype, device: torch.device) -> str:
    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    if device.type != "cuda":
        return f"the model is on {device}, and it needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the weights are {str(dtype).removeprefix('torch.')}, and it needs float16 or bfloat16"
    return ""


class AttentionModule(nn.Module):
    """A module that attends by itself, or a whole model: `attention_backend` is how."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_backend: AttentionBackend = sdpa_attention


def set_attention_backend(model: nn.Module, backend: AttentionBackend) -> None:
    """All that attends in a model attends with this kernel from now on."""
    for module in model.modules():
        if isinstance(module, AttentionModule):
            module.attention_backend = backend
