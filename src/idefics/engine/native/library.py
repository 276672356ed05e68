"""The compiled library beside this file, if the installation could build it. Knows no torch."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from idefics.engine.native.structures import STRUCT_VERSION, ModelStruct, StepStruct


@cache
def load_library() -> ctypes.CDLL | None:
    """The library with its functions declared, or None where there is none that fits these files."""
    folder = Path(__file__).parent
    for path in (folder / f"_kernel{suffix}" for suffix in EXTENSION_SUFFIXES):
        if path.exists():
            return declare_library(path)
    return None


def declare_library(path: Path) -> ctypes.CDLL | None:
    """The library of a file; None where it is none, or one of other sources."""
    try:
        lib = ctypes.CDLL(str(path))
    except OSError:  # built for another machine
        return None
    if lib.native_layout() != STRUCT_VERSION:  # left over from an older version of these files
        return None
    lib.native_instructions.argtypes, lib.native_instructions.restype = (c_int,), c_char_p
    lib.native_new.argtypes, lib.native_new.restype = (POINTER(ModelStruct), c_char_p, c_int), c_void_p
    lib.native_step.argtypes, lib.native_step.restype = (c_void_p, POINTER(StepStruct)), c_int
    lib.native_free.argtypes, lib.native_free.restype = (c_void_p,), None
    return lib


def instruction_sets() -> list[str]:
    """Those that the library knows and this machine has, the best first; none without a library."""
    lib = load_library()
    names: list[str] = []
    while lib and (name := lib.native_instructions(len(names))):
        names.append(name.decode())
    return names
