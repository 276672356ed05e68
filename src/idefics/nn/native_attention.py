"""Attention in float32 as one call into C, for a processor with wide vectors: every query sees every key.

Twice as fast as torch's kernel with AVX-512 (`native/attention.c`); where that is not, torch's is used.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

MIN_QUERIES = 16  # queries that pay for packing the keys


class AttentionArgs(ctypes.Structure):
    """As the C code declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
        *(
            (f"{name}_{axis}", ctypes.c_int64)
            for name in ("query", "key", "value", "out")
            for axis in ("frame", "head", "row")
        ),
        *((name, ctypes.c_int) for name in ("frames", "heads", "key_heads", "queries", "keys", "size")),
        ("scale", ctypes.c_float),
    )


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled code, whether or not it pays on this machine."""
    folder = Path(__file__).parent
    for path in (folder / f"_attention{suffix}" for suffix in EXTENSION_SUFFIXES):
        if path.exists():
            try:
                lib = ctypes.CDLL(str(path))
            except OSError:  # built for another machine
                return None
            lib.idefics_attend.argtypes = (ctypes.POINTER(AttentionArgs), ctypes.c_int, ctypes.c_void_p)
            return lib
    return None


@cache
def load_supported_library() -> ctypes.CDLL | None:
    """The compiled code, where it pays on this machine: its vectors are wide."""
    lib = load_library()
    return lib if lib is not None and lib.idefics_attention_works() else None


@cache
def gomp_parallel_address() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP that torch works with, so that its own threads do the work."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, TypeError, OSError):  # another OpenMP, another system
        return None


def can_use_native_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attend` can take these, and pays."""
    return (
        q.shape[2] >= MIN_QUERIES
        and all(
            x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1 and not x.requires_grad
            for x in (q, k, v)
        )
        and load_supported_library() is not None
        and (torch.get_num_threads() == 1 or gomp_parallel_address() is not None)
    )


def native_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v: (B, H, T, K), (B, h, L, K) twice -> (B, H, T, K), laid out as (B, T, H, K)."""
    lib = load_supported_library()
    assert lib is not None, "see can_attend"
    frames, heads, queries, size = q.shape
    out = q.new_empty(frames, queries, heads, size).transpose(1, 2)
    args = AttentionArgs(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(stride for x in (q, k, v, out) for stride in x.stride()[:3]),
        *(frames, heads, k.shape[1], queries, k.shape[2], size, size**-0.5),
    )
    if not lib.idefics_attend(args, torch.get_num_threads(), gomp_parallel_address()):
        raise MemoryError(f"there is no memory for attention to {k.shape[2]} keys")
    return out
