"""Alternatives to torch's matrix product, for float32 and int8 weights. `quant.autotune` chooses among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from idefics.nn.native_linear import (
    NativeWeight,
    can_use_native_inputs,
    can_use_native_weight,
    native_linear,
)
from idefics.quant.int4_kernels import can_use_native_w8a8_matmul, w8a8_matmul_native

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
    multiply = w8a8_matmul_native if can_use_native_w8a8_matmul(rows) else w8a8_matmul_torch
    for row_block, out_block in zip(
        rows.split(block_size := max(1, MAX_SUMS_AT_ONCE // len(weight))), out.split(block_size), strict=True
    ):
        multiply(row_block, weight, scale, bias, out_block)
    return out.view(*input.shape[:-1], len(weight))


def w8a8_matmul_torch(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`w8a8_matmul_native` in torch, slower and for every dtype: (R, I) rows times the weight, into `out` (R, O)."""
    row_scales = rows.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(rows.dtype).tiny)
    quantized_rows = (rows / row_scales).round_().to(torch.int8)
    torch.mul(torch._int_mm(quantized_rows, weight.t()), row_scales, out=out)
    if bias is None:
        out.mul_(scale)
    else:
        torch.addcmul(bias, out, scale, out=out)


def w8a8_matmul_cuda(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`w8a8_matmul` on CUDA: few rows are padded, and sums are scaled in float32, since float16 would overflow.

    The weight is read once in 8 bits; dequantising it would write and read it again in 16 bits.
    """
    rows = input.reshape(-1, input.shape[-1]).float()
    if (num_rows := len(rows)) <= MAX_PADDED_ROWS:
        rows = functional.pad(rows, (0, 0, 0, NUM_PADDED_ROWS - num_rows))
    row_scales = rows.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(rows.dtype).tiny)
    quantized_rows = (rows / row_scales).round_().to(torch.int8)
    scaled_sums = torch._int_mm(quantized_rows, weight.t())[:num_rows] * row_scales[:num_rows] * scale.float()
    out = scaled_sums.to(input.dtype).view(*input.shape[:-1], len(weight))
    return out if bias is None else out + bias


def can_use_cuda_int8_matmul(weight: Tensor) -> bool:
    """Whether `w8a8_matmul_cuda` supports this int8 weight."""
    return weight.is_cuda and not any(size % SIZE_MULTIPLE for size in weight.shape)
