"""Calls C kernels for products of many rows with weights in bfloat16, int8 or int4, and for attention (`native/*.c`).

Inputs of a product are rounded to bfloat16, for int8 weights to int8 with a scale for each row; int4 weights are
dequantized into bfloat16. Sums of bfloat16 products are float32, those of int8 exact. A row's result does not depend on
the other rows or the number of threads.

Attention in float32 without a mask is twice as fast as torch's kernel with AVX-512; where the processor multiplies
bfloat16, inputs and attention weights are rounded to it, causal too. Elsewhere torch's kernels are used.
"""

from __future__ import annotations

from ctypes import Structure
from typing import NamedTuple

import torch
from torch import Tensor, nn

from idefics.native import library
from idefics.native.library import Kernel
from idefics.native.structures import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    AttentionArgs,
    LinearStruct,
    MatmulArgs,
)
from idefics.nn.adapter_terms import LowRankHook

MAX_INPUTS = 2**16  # int32 holds the sums of this many products of bytes
MAX_FLOAT32_ROWS = (
    16  # with more rows, upcasting a weight once for all costs less than reading it again for each four
)

# How weights are stored, by dtype, and the kernel that multiplies them.
STORAGE: dict[torch.dtype, tuple[int, Kernel]] = {
    torch.bfloat16: (BFLOAT16, "bfloat16 products"),
    torch.int8: (INT8, "int8 products"),
    torch.uint8: (INT4, "bfloat16 products"),
}
SCALE_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


class NativeWeight(NamedTuple):
    """A weight that the C kernels can multiply.

    Attributes:
        weight: (O, I) bfloat16, (O, I) int8 levels, or the uint8 levels of an `Int4Linear`.
        scale: of the levels, as in `Int8Linear` and `Int4Linear`.
        num_inputs: I of int4 levels, whose last group may be incomplete.
    """

    weight: Tensor
    scale: Tensor | None = None
    num_inputs: int | None = None

    def struct(self) -> LinearStruct:
        """The C struct that describes the weight; valid while its tensors are."""
        outputs, inputs = self.weight.shape
        return LinearStruct(
            weight=self.weight.data_ptr(),
            scale=address(self.scale),
            kind=STORAGE[self.weight.dtype][0],
            scale_kind=FLOAT32 if self.scale is None else SCALE_KINDS[self.scale.dtype],
            outputs=outputs,
            inputs=inputs if self.num_inputs is None else self.num_inputs,
        )


class NativeLinear(nn.Linear):
    """Base of linear layers whose products C kernels may compute."""

    def native_weight(self) -> NativeWeight | None:
        """The weight for the C kernels; None if the layer was not set to use them or they do not support it."""
        return None


def can_use_native_weight(weight: Tensor, scale: Tensor | None = None) -> bool:
    """Whether the C kernels support a weight, and this processor has the instructions for its dtype."""
    return (
        weight.dtype in STORAGE
        and weight.is_cpu
        and weight.is_contiguous()
        and weight.shape[1] <= MAX_INPUTS
        and (scale is None or (scale.dtype in SCALE_KINDS and scale.is_contiguous()))
        and library.best_instruction_set(STORAGE[weight.dtype][1]) is not None
    )


def can_use_native_inputs(input: Tensor) -> bool:
    """Whether the C kernels support an input: float32 on the CPU, without gradients."""
    return input.dtype == torch.float32 and input.is_cpu and not torch.is_grad_enabled()


def is_plain_float32(parameter: Tensor) -> bool:
    """Whether C can read a parameter as an array of floats."""
    return parameter.dtype == torch.float32 and parameter.is_cpu and parameter.is_contiguous()


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would call other functions before or after, which C would leave out."""
    if not module._forward_hooks:
        return bool(module._forward_pre_hooks)
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return not all(isinstance(hook, LowRankHook) and hook.is_idle for hook in hooks)


def native_linear(
    input: Tensor,
    weight: NativeWeight,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    function: str = "idefics_matmul",
) -> Tensor:
    """A linear layer of any number of rows: (..., I) float32 -> (..., O) float32.

    Args:
        input: see `can_use_native_inputs`.
        weight: see `can_use_native_weight`.
        bias: (O,) or None.
        residual: (..., O) float32, added to the result; or None.
        function: the name of the C function.

    Raises:
        MemoryError: there is no memory for the rounded inputs.
    """
    rows = input.reshape(-1, input.shape[-1]).contiguous()
    out = rows.new_empty(len(rows), len(weight.weight))
    float_bias = None if bias is None else bias.float().contiguous()
    added = None if residual is None else residual.reshape(out.shape).contiguous()
    args = MatmulArgs(
        x=rows.data_ptr(),
        linear=weight.struct(),
        bias=address(float_bias),
        residual=address(added),
        out=out.data_ptr(),
        rows=len(rows),
    )
    call_kernel(function, args, f"a product of {len(rows)} rows of {rows.shape[1]} inputs")
    return out.view(*input.shape[:-1], len(weight.weight))


def can_use_float32_products(input: Tensor, weight: Tensor) -> bool:
    """Whether `float32_linear` supports these tensors, and the rows are so few that it is faster than torch."""
    return (
        weight.dtype == torch.bfloat16
        and can_use_native_inputs(input)
        and input.numel() <= MAX_FLOAT32_ROWS * input.shape[-1]
        and weight.is_cpu
        and weight.is_contiguous()
        and library.best_instruction_set("float32 products") is not None
    )


def float32_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of a few rows in float32, with a bfloat16 weight: (..., I) -> (..., O).

    The weight (O, I) is upcast as it is read; `bias` is (O,) or None.
    """
    return native_linear(input, NativeWeight(weight), bias, function="idefics_matmul_float32")


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor's data for C; NULL (None) for None."""
    return None if tensor is None else tensor.data_ptr()


def call_kernel(function: str, args: Structure, what: str | None = None) -> None:
    """Calls a function of the C library by its name, with torch's threads.

    Its callers have checked that there is a library.

    Args:
        what: what the function needs memory for; None: it needs none of its own.

    Raises:
        MemoryError: there is no memory for it.
    """
    kernels = library.load_library()
    assert kernels is not None, "see the can_ and find_ functions"
    parallel = library.gomp_parallel_address()
    threads = torch.get_num_threads() if parallel else 1
    if not getattr(kernels, function)(args, threads, parallel) and what is not None:
        raise MemoryError(f"not enough memory for {what}")


MIN_QUERIES = 16  # with fewer, packing the keys costs more than the kernels win


def can_use_native_attention(q: Tensor, k: Tensor, v: Tensor, *, bfloat16: bool = False) -> bool:
    """Whether `native_attention` supports these tensors on this processor, and is faster than torch."""
    kernel: Kernel = "bfloat16 products" if bfloat16 else "attention"
    return (
        q.shape[2] >= MIN_QUERIES
        and not (bfloat16 and q.shape[-1] % 2)
        and all(
            x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1 and not x.requires_grad
            for x in (q, k, v)
        )
        and library.best_instruction_set(kernel) is not None
        and (torch.get_num_threads() == 1 or library.gomp_parallel_address() is not None)
    )


def native_attention(
    q: Tensor, k: Tensor, v: Tensor, *, bfloat16: bool = False, causal: bool = False
) -> Tensor:
    """Attention in C: softmax(q k' / sqrt(K)) v, laid out in memory as (B, T, H, K).

    Args:
        q: (B, H, T, K) float32.
        k, v: (B, h, L, K) float32.
        bfloat16: whether inputs and attention weights are rounded to bfloat16; softmax and sums are float32.
        causal: with `bfloat16`, whether query t attends to keys up to L - T + t only. Its result does not depend on
            other queries.

    Returns:
        (B, H, T, K) float32.
    """
    frames, heads, queries, size = q.shape
    out = q.new_empty(frames, queries, heads, size).transpose(1, 2)
    args = AttentionArgs(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(stride for x in (q, k, v, out) for stride in x.stride()[:3]),
        *(frames, heads, k.shape[1], queries, k.shape[2], size, size**-0.5, causal),
    )
    function = "idefics_attention_bfloat16" if bfloat16 else "idefics_attention"
    call_kernel(function, args, f"attention to {k.shape[2]} keys")
    return out
