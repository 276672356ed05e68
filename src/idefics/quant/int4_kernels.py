"""Passes over memory in C (`native/passes.c`): weights of four bits into float32, or multiplied as they are; inputs
rounded to eight bits, and the sums of their products scaled.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from idefics.nn.native_attention import gomp_parallel_address

GROUP_SIZE = 32  # neighbouring inputs that share a scale
BEST_SIMD_LEVEL = 2  # AVX-512, where there is some
SCALE_DTYPES = torch.float32, torch.bfloat16


class DequantizeInt4Args(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("levels", "scales", "out")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
        *((name, ctypes.c_int) for name in ("bfloat16", "width")),
    )


class QuantizeRowsArgs(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "levels", "steps", "sums", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs")),
        ("width", ctypes.c_int),
    )


class Int4MatmulArgs(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("x", "whole", "steps", "minus", "levels", "scales", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "outputs", "inputs")),
        ("bfloat16", ctypes.c_int),
    )


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled code, where there is some for this machine."""
    folder = Path(__file__).parent
    for path in (folder / f"_passes{suffix}" for suffix in EXTENSION_SUFFIXES):
        if path.exists():
            try:
                return declare_functions(path)
            except OSError:  # built for another machine
                return None
    return None


def declare_functions(path: Path) -> ctypes.CDLL:
    """The library of a file, its functions declared."""
    library = ctypes.CDLL(str(path))
    library.idefics_dequantize_int4.argtypes = (
        ctypes.POINTER(DequantizeInt4Args),
        ctypes.c_int,
        ctypes.c_void_p,
    )
    library.idefics_int4_matmul.argtypes = (ctypes.POINTER(Int4MatmulArgs), ctypes.c_int, ctypes.c_void_p)
    for function in (library.idefics_quantize_rows, library.idefics_scale_rows):
        function.argtypes, function.restype = (
            (ctypes.POINTER(QuantizeRowsArgs), ctypes.c_int, ctypes.c_void_p),
            None,
        )
    library.idefics_dequantize_int4.restype = library.idefics_int4_matmul.restype = None
    return library


def can_dequantize_int4(levels: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether `widen` can take these, and gives this dtype."""
    return (
        dtype == torch.float32
        and levels.device.type == "cpu"
        and scale.dtype in SCALE_DTYPES
        and levels.is_contiguous()
        and scale.is_contiguous()
        and load_library() is not None
    )


def dequantize_int4(
    levels: Tensor, scale: Tensor, num_inputs: int, simd_level: int = BEST_SIMD_LEVEL
) -> Tensor:
    """(O, ceil(I / 32) * 16) uint8, (O, ceil(I / 32)) -> (O, I) float32: `Int4Linear`'s layout, widened.

    Args:
        num_inputs: I.
        simd_level: of vectors: 2 for AVX-512, 1 for AVX2, 0 for what any machine has; less where the machine has less.
    """
    library = load_library()
    assert library is not None, "see can_widen"
    out = torch.empty(len(levels), num_inputs)
    arguments = DequantizeInt4Args(
        *(x.data_ptr() for x in (levels, scale, out)),
        *(
            len(levels),
            num_inputs,
            scale.dtype == torch.bfloat16,
            library.idefics_int4_simd_level(simd_level),
        ),
    )
    openmp_parallel = gomp_parallel_address()
    library.idefics_dequantize_int4(
        arguments, torch.get_num_threads() if openmp_parallel else 1, openmp_parallel
    )
    return out


def can_use_w4a8_matmul(levels: Tensor, scale: Tensor) -> bool:
    """Whether `multiply_packed` can take this weight: the machine has dot products of bytes."""
    library = load_library()
    return (
        library is not None
        and library.idefics_has_int4_matmul()
        and can_dequantize_int4(levels, scale, torch.float32)
    )


def w4a8_matmul(input: Tensor, levels: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product with `Int4Linear`'s weight whose inputs are rounded too: to eight bits, in the same groups of 32.

    (..., I), (O, ceil(I / 32) * 16) uint8, (O, ceil(I / 32)), (O,) or None -> (..., O). A group's sums are exact.
    """
    library = load_library()
    assert library is not None, "see can_multiply_packed"
    assert input.is_cpu, "see can_multiply_packed"
    rows = input.reshape(-1, inputs := input.shape[-1]).float().contiguous()
    outputs, groups = scale.shape
    quantized_rows = torch.empty(len(rows), groups * GROUP_SIZE, dtype=torch.int8)
    row_scales, zero_corrections = (
        torch.empty(len(rows), groups),
        torch.empty(len(rows), groups, dtype=torch.int32),
    )
    float_bias = None if bias is None else bias.float().contiguous()
    out = torch.empty(len(rows), outputs)
    arguments = Int4MatmulArgs(
        *(x.data_ptr() for x in (rows, quantized_rows, row_scales, zero_corrections, levels, scale)),
        *(None if float_bias is None else float_bias.data_ptr(), out.data_ptr()),
        *(len(rows), outputs, inputs, scale.dtype == torch.bfloat16),
    )
    openmp_parallel = gomp_parallel_address()
    library.idefics_int4_matmul(arguments, torch.get_num_threads() if openmp_parallel else 1, openmp_parallel)
    return out.view(*input.shape[:-1], outputs).to(input.dtype)


def can_use_native_w8a8_matmul(rows: Tensor) -> bool:
    """Whether `multiply_rounded` can take these inputs."""
    return rows.dtype == torch.float32 and rows.is_cpu and rows.is_contiguous() and load_library() is not None


def w8a8_matmul_native(
    rows: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    out: Tensor,
    simd_level: int = BEST_SIMD_LEVEL,
) -> None:
    """A product with `Int8Linear`'s weight by torch's product of bytes: (R, I), (O, I) int8, (O,), (O,) or None.

    Each row is rounded by a step of its own. A row with something in it that is no number, or not finite, becomes none.

    Args:
        out: (R, O) float32, where the result goes, and before it the sums.
        simd_level: as in `widen`.
    """
    library = load_library()
    assert library is not None, "see can_round"
    quantized_rows, row_scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
    sums, scales = out.view(torch.int32), scale.float()
    float_bias = None if bias is None else bias.float()
    arguments = QuantizeRowsArgs(
        *(x.data_ptr() for x in (rows, quantized_rows, row_scales, sums, scales)),
        None if float_bias is None else float_bias.data_ptr(),
        *(*rows.shape, len(weight), library.idefics_int4_simd_level(simd_level)),
    )
    openmp_parallel = gomp_parallel_address()
    num_threads = torch.get_num_threads() if openmp_parallel else 1
    library.idefics_quantize_rows(arguments, num_threads, openmp_parallel)
    torch._int_mm(quantized_rows, weight.t(), out=sums)
    library.idefics_scale_rows(arguments, num_threads, openmp_parallel)
