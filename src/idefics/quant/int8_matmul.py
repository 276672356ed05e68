"""Matrix products beside torch's own. Which is quickest on a CPU differs by machine, so `measure` chooses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from idefics.quant.int4_kernels import can_use_native_w8a8_matmul, w8a8_matmul_native

MAX_PADDED_ROWS, NUM_PADDED_ROWS = 16, 32  # CUDA's product of whole numbers takes more than 16 rows
SIZE_MULTIPLE = 8  # and sizes that are multiples of this
MAX_SUMS_AT_ONCE = 2**22  # sums that are held at once: 16 MiB


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., I), (O, I), (O,) or None -> (..., O): oneDNN's float32 product. It has no gradient: torch's own then."""
    if torch.is_grad_enabled():
        return functional.linear(input, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return out


def w8a8_matmul(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product of whole numbers: each row of the input is rounded to eight bits by a scale of its own.

    (..., I), (O, I) int8, (O,), (O,) or None -> (..., O). Sums are exact.
    """
    rows = input.reshape(-1, input.shape[-1])
    out = rows.new_empty(len(rows), len(weight))
    multiply = w8a8_matmul_native if can_use_native_w8a8_matmul(rows) else w8a8_matmul_torch
    for row_block, out_block in zip(
        rows.split(block_size := max(1, MAX_SUMS_AT_ONCE // len(weight))), out.split(block_size), strict=True
    ):
        multiply(row_block, weight, scale, bias, out_block)
    return out.view(*input.shape[:-1], len(weight))


def w8a8_matmul_torch(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """The slow twin of `multiply_rounded`, for every dtype."""
    row_scales = rows.abs().amax(dim=-1, keepdim=True).div_(127).clamp_(min=torch.finfo(rows.dtype).tiny)
    quantized_rows = (rows / row_scales).round_().to(torch.int8)
    torch.mul(torch._int_mm(quantized_rows, weight.t()), row_scales, out=out)
    if bias is None:
        out.mul_(scale)
    else:
        torch.addcmul(bias, out, scale, out=out)


def w8a8_matmul_cuda(input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`integers` as CUDA computes them: few rows are padded, and sums scaled in float32, or halves would overflow.

    A weight is read as it lies, once: rounding it back would write and read it twice over in sixteen bits.
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
    """Whether CUDA multiplies a weight of eight-bit whole numbers."""
    return weight.is_cuda and not any(size % SIZE_MULTIPLE for size in weight.shape)
