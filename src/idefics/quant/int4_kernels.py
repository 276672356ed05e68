"""Calls the C kernels for int4 and int8 layers (`native/quantized.c`).

int4 weights are dequantized into float32, or multiplied as they are with inputs rounded to int8; for int8 weights the
inputs are rounded before torch's integer product, and its sums are scaled after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from idefics.native import library
from idefics.native.library import InstructionSet
from idefics.native.structures import GROUP_SIZE, DequantizeInt4Args, Int4MatmulArgs, QuantizeRowsArgs
from idefics.nn.native_linear import call_kernel

SCALE_DTYPES = torch.float32, torch.bfloat16


def can_dequantize_int4(levels: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether `dequantize_int4` supports these weights and this dtype of its result."""
    return (
        dtype == torch.float32
        and levels.device.type == "cpu"
        and scale.dtype in SCALE_DTYPES
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
        *(None if float_bias is None else float_bias.data_ptr(), out.data_ptr()),
        *(len(rows), outputs, inputs, scale.dtype == torch.bfloat16),
    )
    call_kernel("idefics_int4_matmul", args)
    return out.view(*input.shape[:-1], outputs).to(input.dtype)


def can_use_native_w8a8_matmul(rows: Tensor) -> bool:
    """Whether `w8a8_matmul_native` supports these inputs."""
    return (
        rows.dtype == torch.float32
        and rows.is_cpu
        and rows.is_contiguous()
        and library.load_library() is not None
    )


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
        None if float_bias is None else float_bias.data_ptr(),
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
