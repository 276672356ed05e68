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

from idefics.nn.attend import parallel

GROUP = 32  # neighbouring inputs that share a scale
BEST = 2  # AVX-512, where there is some
SCALES = torch.float32, torch.bfloat16


class Widening(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("levels", "scales", "out")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
        *((name, ctypes.c_int) for name in ("bfloat16", "width")),
    )


class Rows(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "levels", "steps", "sums", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs")),
        ("width", ctypes.c_int),
    )


class Product(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("x", "whole", "steps", "minus", "levels", "scales", "bias", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "outputs", "inputs")),
        ("bfloat16", ctypes.c_int),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, where there is some for this machine."""
    folder = Path(__file__).parent
    for path in (folder / f"_passes{suffix}" for suffix in EXTENSION_SUFFIXES):
        if path.exists():
            try:
                return declared(path)
            except OSError:  # built for another machine
                return None
    return None


def declared(path: Path) -> ctypes.CDLL:
    """The library of a file, its functions declared."""
    found = ctypes.CDLL(str(path))
    found.idefics_widen.argtypes = (ctypes.POINTER(Widening), ctypes.c_int, ctypes.c_void_p)
    found.idefics_multiply.argtypes = (ctypes.POINTER(Product), ctypes.c_int, ctypes.c_void_p)
    for function in (found.idefics_round_rows, found.idefics_scale_rows):
        function.argtypes, function.restype = (ctypes.POINTER(Rows), ctypes.c_int, ctypes.c_void_p), None
    found.idefics_widen.restype = found.idefics_multiply.restype = None
    return found


def can_widen(levels: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    """Whether `widen` can take these, and gives this dtype."""
    return (
        dtype == torch.float32
        and levels.device.type == "cpu"
        and scale.dtype in SCALES
        and levels.is_contiguous()
        and scale.is_contiguous()
        and library() is not None
    )


def widen(levels: Tensor, scale: Tensor, inputs: int, width: int = BEST) -> Tensor:
    """(O, ceil(I / 32) * 16) uint8, (O, ceil(I / 32)) -> (O, I) float32: `Int4Linear`'s layout, widened.

    Args:
        inputs: I.
        width: of vectors: 2 for AVX-512, 1 for AVX2, 0 for what any machine has; less where the machine has less.
    """
    code = library()
    assert code is not None, "see can_widen"
    out = torch.empty(len(levels), inputs)
    call = Widening(
        *(x.data_ptr() for x in (levels, scale, out)),
        *(len(levels), inputs, scale.dtype == torch.bfloat16, code.idefics_passes_width(width)),
    )
    address = parallel()
    code.idefics_widen(call, torch.get_num_threads() if address else 1, address)
    return out


def can_multiply_packed(levels: Tensor, scale: Tensor) -> bool:
    """Whether `multiply_packed` can take this weight: the machine has dot products of bytes."""
    code = library()
    return code is not None and code.idefics_multiply_works() and can_widen(levels, scale, torch.float32)


def multiply_packed(input: Tensor, levels: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A product with `Int4Linear`'s weight whose inputs are rounded too: to eight bits, in the same groups of 32.

    (..., I), (O, ceil(I / 32) * 16) uint8, (O, ceil(I / 32)), (O,) or None -> (..., O). A group's sums are exact.
    """
    code = library()
    assert code is not None, "see can_multiply_packed"
    assert input.is_cpu, "see can_multiply_packed"
    rows = input.reshape(-1, inputs := input.shape[-1]).float().contiguous()
    outputs, groups = scale.shape
    whole = torch.empty(len(rows), groups * GROUP, dtype=torch.int8)
    steps, minus = torch.empty(len(rows), groups), torch.empty(len(rows), groups, dtype=torch.int32)
    added = None if bias is None else bias.float().contiguous()
    out = torch.empty(len(rows), outputs)
    call = Product(
        *(x.data_ptr() for x in (rows, whole, steps, minus, levels, scale)),
        *(None if added is None else added.data_ptr(), out.data_ptr()),
        *(len(rows), outputs, inputs, scale.dtype == torch.bfloat16),
    )
    address = parallel()
    code.idefics_multiply(call, torch.get_num_threads() if address else 1, address)
    return out.view(*input.shape[:-1], outputs).to(input.dtype)


def can_round(rows: Tensor) -> bool:
    """Whether `multiply_rounded` can take these inputs."""
    return rows.dtype == torch.float32 and rows.is_cpu and rows.is_contiguous() and library() is not None


def multiply_rounded(
    rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, width: int = BEST
) -> None:
    """A product with `Int8Linear`'s weight by torch's product of bytes: (R, I), (O, I) int8, (O,), (O,) or None.

    Each row is rounded by a step of its own. A row with something in it that is no number, or not finite, becomes none.

    Args:
        out: (R, O) float32, where the result goes, and before it the sums.
        width: as in `widen`.
    """
    code = library()
    assert code is not None, "see can_round"
    levels, steps = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
    sums, scales = out.view(torch.int32), scale.float()
    added = None if bias is None else bias.float()
    call = Rows(
        *(x.data_ptr() for x in (rows, levels, steps, sums, scales)),
        None if added is None else added.data_ptr(),
        *(*rows.shape, len(weight), code.idefics_passes_width(width)),
    )
    address = parallel()
    threads = torch.get_num_threads() if address else 1
    code.idefics_round_rows(call, threads, address)
    torch._int_mm(levels, weight.t(), out=sums)
    code.idefics_scale_rows(call, threads, address)
