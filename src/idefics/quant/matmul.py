"""Alternatives to torch's matrix product for float32, int8 and int4 weights. `quant.autotune` chooses among them.

Some call C kernels (`native/quantized.c`): int4 weights are dequantized into float32, or multiplied as they are with
inputs rounded to int8; for int8 weights the inputs are rounded before torch's integer product, and its sums are scaled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from idefics.native import library
from idefics.native.library import InstructionSet
from idefics.native.structures import GROUP_SIZE, DequantizeInt4Args, Int4MatmulArgs, QuantizeRowsArgs
from idefics.nn.native_kernels import (
    SCALE_KINDS,
    NativeWeight,
    address,
    call_kernel,
    can_use_native_inputs,
    can_use_native_weight,
    is_plain_float32,
    native_linear,
)


def can_dequantize_int4(levels: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether `dequantize_int4` supports these weights and this dtype of its result."""
    return (
        dtype == torch.float32
        and levels.device.type == "cpu"
        and scale.dtype in SCALE_KINDS
        and levels.is_contiguous()
        and scale.is_contiguous()
        and library.load_library() is not None
    )


def dequantize_int4(
    levels: Tensor, scale: Tensor, num_inputs: int, instruction_set: InstructionSet | None = None
) -> Tensor:
    """The weights of an `Int4Linear` in float32: level * scale, rounded once, as torch does it.

    Args:
        levels: (O, ceil(I / 32) * 16) uint8.
        scale: (O, ceil(I / 32)) float32 or bfloat16.
        num_inputs: I.
        instruction_set: one that this machine has; None: the fastest.

    Returns:
        (O, I).
    """
    out = torch.empty(len(levels), num_inputs)
    args = DequantizeInt4Args(
        *(x.data_ptr() for x in (levels, scale, out)),
        *(
            len(levels),
            num_inputs,
            scale.dtype == torch.bfloat16,
            _given_or_fastest_instruction_set(instruction_set),
        ),
    )
    call_kernel("idefics_dequantize_int4", args)
    return out


def can_use_w4a8_matmul(levels: Tensor, scale: Tensor) -> bool:
    """Whether `w4a8_matmul` supports this weight, and the processor has dot products of bytes."""
    return library.best_instruction_set("int4 products") is not None and can_dequantize_int4(
        levels, scale, torch.float32
    )


def w4a8_matmul(input: Tensor, levels: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`input` times the weight of an `Int4Linear`, with the input rounded to int8 in groups of 32.

    Args:
        input: (..., I).
        levels: (O, ceil(I / 32) * 16) uint8.
        scale: (O, ceil(I / 32)) float32 or bfloat16.
        bias: (O,) or None.

    Returns:
        (..., O) in the dtype of `input`; the sums of a group are exact.
    """
    assert input.is_cpu, "see can_use_w4a8_matmul"
    rows = input.reshape(-1, inputs := input.shape[-1]).float().contiguous()
    outputs, groups = scale.shape
    row_levels = torch.empty(len(rows), groups * GROUP_SIZE, dtype=torch.int8)
    row_scales = torch.empty(len(rows), groups)
    zero_corrections = torch.empty(len(rows), groups, dtype=torch.int32)
    float_bias = None if bias is None else bias.float().contiguous()
    out = torch.empty(len(rows), outputs)
    args = Int4MatmulArgs(
        *(x.data_ptr() for x in (rows, row_levels, row_scales, zero_corrections, levels, scale)),
        *(address(float_bias), out.data_ptr()),
        *(len(rows), outputs, inputs, scale.dtype == torch.bfloat16),
    )
    call_kernel("idefics_int4_matmul", args)
    return out.view(*input.shape[:-1], outputs).to(input.dtype)


def w8a8_matmul_native(
    rows: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    out: Tensor,
    instruction_set: InstructionSet | None = None,
) -> None:
    """`rows` times the weight of an `Int8Linear`, with each row rounded to int8 by a scale of its own.

    A row that holds NaN or an infinity becomes NaN.

    Args:
        rows: (R, I) float32.
        weight: (O, I) int8.
        scale: (O,).
        bias: (O,) or None.
        out: (R, O) float32: receives the integer sums first, then the result.
        instruction_set: as in `dequantize_int4`.
    """
    row_levels, row_scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
    sums, scales = out.view(torch.int32), scale.float()
    float_bias = None if bias is None else bias.float()
    args = QuantizeRowsArgs(
        *(x.data_ptr() for x in (rows, row_levels, row_scales, sums, scales)),
        address(float_bias),
        *(*rows.shape, len(weight), _given_or_fastest_instruction_set(instruction_set)),
    )
    call_kernel("idefics_quantize_rows", args)
    torch._int_mm(row_levels, weight.t(), out=sums)
    call_kernel("idefics_scale_rows", args)


def _given_or_fastest_instruction_set(instruction_set: InstructionSet | None) -> InstructionSet:
    """The given instruction set; for None the fastest of this machine."""
    return (
        library.available_instruction_sets("int8 and int4")[0] if instruction_set is None else instruction_set
    )


MAX_PADDED_ROWS, NUM_PADDED_ROWS = (
    16,
    32,
)  # up to 16 rows are padded to 32: CUDA's int8 product needs more than 16,
SIZE_MULTIPLE = 8  # and inputs and outputs that are multiples of this
MAX_SUMS_AT_ONCE = 2**22  # int32 sums held at once: 16 MiB


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's float32 product, a `LinearFunction`; products of gradients are oneDNN's too."""
    if not torch.is_grad_enabled():
        return _onednn_product(input, weight, bias)
    if input.dtype != torch.float32 or weight.dtype != torch.float32:
        return functional.linear(input, weight, bias)
    rows = _OnednnLinear.apply(input.reshape(-1, input.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    out: Tensor = rows.view(*input.shape[:-1], len(weight))
    return out


def _onednn_product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's float32 product (..., I), (O, I), (O,) -> (..., O), which has no gradients in torch."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return out


class _OnednnLinear(torch.autograd.Function):
    """`_onednn_product` of rows (N, I), with gradients of any order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        return _onednn_product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.t(), None) if of_rows else None,
            onednn_linear(gradient.t(), rows.t(), None) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def w8a8_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A `QuantizedMatmul` of int8 numbers on a CPU: each row of the input is quantised to int8 with a scale of its own.

    The integer sums are exact.
    """
    if can_use_native_inputs(input) and can_use_native_weight(weight, scale):
        return native_linear(input, NativeWeight(weight, scale), bias)
    rows = input.reshape(-1, input.shape[-1])
    out = rows.new_empty(len(rows), len(weight))
    is_native = is_plain_float32(rows) and library.load_library() is not None
    multiply = w8a8_matmul_native if is_native else w8a8_matmul_torch
    for row_block, out_block in zip(
        rows.split(block_size := max(1, MAX_SUMS_AT_ONCE // len(weight))), out.split(block_size), strict=True
    ):
        multiply(row_block, weight, scale, bias, out_block)
    return out.view(*input.shape[:-1], len(weight))


def w8a8_matmul_torch(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`w8a8_matmul_native` in torch, slower and for every dtype: (R, I) rows times the weight, into `out` (R, O)."""
    quantized_rows, row_scales = quantize_rows(rows)
    torch.mul(torch._int_mm(quantized_rows, weight.t()), row_scales, out=out)
    if bias is None:
        out.mul_(scale)
    else:
        torch.addcmul(bias, out, scale, out=out)


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row (I,) to int8 by a scale of its own: (R, I) -> (R, I) int8 and (R, 1) scales."""
    row_scales = rows.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(rows.dtype).tiny)
    return (rows / row_scales).round_().to(torch.int8), row_scales


def w8a8_matmul_cuda(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`w8a8_matmul` on CUDA: few rows are padded, and sums are scaled in float32, since float16 would overflow.

    The weight is read once in 8 bits; dequantising it would write and read it again in 16 bits.
    """
    rows = input.reshape(-1, input.shape[-1]).float()
    if (num_rows := len(rows)) <= MAX_PADDED_ROWS:
        rows = functional.pad(rows, (0, 0, 0, NUM_PADDED_ROWS - num_rows))
    quantized_rows, row_scales = quantize_rows(rows)
    scaled_sums = torch._int_mm(quantized_rows, weight.t())[:num_rows] * row_scales[:num_rows] * scale.float()
    out = scaled_sums.to(input.dtype).view(*input.shape[:-1], len(weight))
    return out if bias is None else out + bias


def can_use_cuda_int8_matmul(weight: Tensor) -> bool:
    """Whether `w8a8_matmul_cuda` supports this int8 weight."""
    return weight.is_cuda and not any(size % SIZE_MULTIPLE for size in weight.shape)
