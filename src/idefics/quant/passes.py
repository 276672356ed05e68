"""Weights of four bits into float32 in one pass over memory, in C (`native/passes.c`); torch needs five."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from idefics.nn.attend import parallel

BEST = 2  # AVX-512, where there is some
SCALES = torch.float32, torch.bfloat16


class Widening(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("levels", "scales", "out")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
        *((name, ctypes.c_int) for name in ("bfloat16", "width")),
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
    found.idefics_widen.restype = None
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
