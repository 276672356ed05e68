"""Loads the compiled kernels; reports which instruction set each uses on this machine, or why they cannot be used.

The library is optional: its callers have slower implementations in torch, NumPy or Pillow. Does not import torch.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int, c_size_t, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from idefics.native.structures import (
    STRUCT_VERSION,
    AttentionArgs,
    DequantizeInt4Args,
    GatedMlpArgs,
    Int4MatmulArgs,
    MatmulArgs,
    ModelStruct,
    QkvArgs,
    QuantizeRowsArgs,
    StepStruct,
    VisionArgs,
)

LIBRARY_PATH = Path(__file__).with_name("_kernels.so")

Kernel = Literal[
    "decode step",
    "attention",
    "resizing",
    "int8 and int4",
    "int4 products",
    "bfloat16 products",
    "int8 products",
    "float32 products",
]


class InstructionSet(IntEnum):
    """The processor features that kernels are compiled for, with the numbers of `api.h`."""

    PORTABLE = 0  # plain C, for any processor
    AVX2 = 1  # with FMA and F16C
    AVX512 = 2  # F, BW, DQ and VL
    AVX512_VNNI = 3  # with dot products of bytes
    AVX512_BF16 = 4  # with dot products of bfloat16
    NEON_DOTPROD = 5  # Armv8.2's dot products of bytes

    @property
    def label(self) -> str:
        """The name in lower case, for logs and `idefics info`."""
        return self.name.lower()


# The instruction sets that each kernel is written for, the fastest first. On processors without them torch computes.
VARIANTS: dict[Kernel, tuple[InstructionSet, ...]] = {
    "decode step": (
        InstructionSet.AVX512_VNNI,
        InstructionSet.AVX2,
        InstructionSet.NEON_DOTPROD,
        InstructionSet.PORTABLE,
    ),
    "attention": (InstructionSet.AVX512,),
    "resizing": (InstructionSet.AVX512_VNNI, InstructionSet.AVX2, InstructionSet.PORTABLE),
    "int8 and int4": (InstructionSet.AVX512, InstructionSet.AVX2, InstructionSet.PORTABLE),
    "int4 products": (InstructionSet.AVX512_VNNI,),
    "bfloat16 products": (InstructionSet.AVX512_BF16,),
    "int8 products": (InstructionSet.AVX512_VNNI,),
    "float32 products": (InstructionSet.AVX512,),  # of few rows with weights in bfloat16
}

# Result and arguments of each function of `api.h`.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "idefics_struct_version": (c_int, ()),
    "idefics_has_instruction_set": (c_int, (c_int,)),
    "idefics_decode_new": (c_void_p, (POINTER(ModelStruct), c_int, c_int)),
    "idefics_decode_step": (c_int, (c_void_p, POINTER(StepStruct))),
    "idefics_decode_free": (None, (c_void_p,)),
    "idefics_attention": (c_int, (POINTER(AttentionArgs), c_int, c_void_p)),
    "idefics_attention_bfloat16": (c_int, (POINTER(AttentionArgs), c_int, c_void_p)),
    "idefics_resize_begin": (c_void_p, (c_int, c_int, c_int, c_int, c_void_p, c_int, c_int)),
    "idefics_resize_add": (None, (c_void_p, c_void_p, c_int, c_int)),
    "idefics_resize_end": (None, (c_void_p,)),
    "idefics_normalize": (None, (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p)),
    "idefics_dequantize_int4": (None, (POINTER(DequantizeInt4Args), c_int, c_void_p)),
    "idefics_quantize_rows": (None, (POINTER(QuantizeRowsArgs), c_int, c_void_p)),
    "idefics_scale_rows": (None, (POINTER(QuantizeRowsArgs), c_int, c_void_p)),
    "idefics_int4_matmul": (None, (POINTER(Int4MatmulArgs), c_int, c_void_p)),
    "idefics_matmul": (c_int, (POINTER(MatmulArgs), c_int, c_void_p)),
    "idefics_matmul_float32": (c_int, (POINTER(MatmulArgs), c_int, c_void_p)),
    "idefics_project_qkv": (c_int, (POINTER(QkvArgs), c_int, c_void_p)),
    "idefics_gated_mlp": (c_int, (POINTER(GatedMlpArgs), c_int, c_void_p)),
    "idefics_vision_encode": (c_int, (POINTER(VisionArgs), c_int, c_void_p)),
}


class KernelsMissing(Exception):
    """The compiled library is missing or does not fit; the message says why and what to do."""


def load_library() -> ctypes.CDLL | None:
    """The library with its functions declared; None if it cannot be used: see `missing_reason`."""
    found = _load_once()
    return None if isinstance(found, KernelsMissing) else found


def missing_reason() -> str | None:
    """Why the C kernels cannot be used and what to do about it; None if they can."""
    found = _load_once()
    return str(found) if isinstance(found, KernelsMissing) else None


@cache
def _load_once() -> ctypes.CDLL | KernelsMissing:
    """The loaded library, or the reason why it cannot be used, as an exception that is not raised."""
    try:
        return open_library(LIBRARY_PATH)
    except KernelsMissing as error:
        return error


def open_library(path: Path) -> ctypes.CDLL:
    """Loads the library of a file and declares its functions.

    Raises:
        KernelsMissing: the file does not exist, or was compiled for another machine or from other sources.
    """
    if not path.exists():
        raise KernelsMissing(
            "they were not compiled: install a C compiler, such as gcc, and then reinstall idefics"
        )
    try:
        library = ctypes.CDLL(str(path))
        if library.idefics_struct_version() != STRUCT_VERSION:
            raise AttributeError
    except OSError as error:
        raise KernelsMissing(f"they were compiled for another machine ({error}): reinstall idefics") from None
    except AttributeError:
        raise KernelsMissing("they were compiled from other sources: reinstall idefics") from None
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def available_instruction_sets(kernel: Kernel) -> list[InstructionSet]:
    """The instruction sets that a kernel is written for and this processor has, the fastest first.

    Empty if the library cannot be used.
    """
    library = load_library()
    return [one for one in VARIANTS[kernel] if library and library.idefics_has_instruction_set(one)]


def best_instruction_set(kernel: Kernel) -> InstructionSet | None:
    """The instruction set that a kernel uses on this machine; None if torch, NumPy or Pillow is used instead."""
    return next(iter(available_instruction_sets(kernel)), None)


def describe_kernels() -> dict[str, str | None]:
    """For each kernel the name of the instruction set that it uses on this machine, for `idefics info`.

    "torch's is used here" for a kernel that this processor cannot run; None for all if the library cannot be used.
    """
    if load_library() is None:
        return dict.fromkeys(VARIANTS)
    best = {kernel: best_instruction_set(kernel) for kernel in VARIANTS}
    return {kernel: "torch's is used here" if one is None else one.label for kernel, one in best.items()}


@cache
def gomp_parallel_address() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP library of torch, by which kernels run on torch's own threads.

    Call it after importing torch. None if torch uses another OpenMP library: such kernels then use one thread.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, c_void_p).value
    except (AttributeError, TypeError, OSError):  # another OpenMP library or system
        return None
