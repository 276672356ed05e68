"""The compiled library beside this file, if the installation could build it. Knows no torch."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from idefics.engine.native.structures import LAYOUT, Model, Step


@cache
def library() -> ctypes.CDLL | None:
    """The library with its functions declared, or None where there is none that fits these files."""
    folder = Path(__file__).parent
    for path in (folder / f"_kernel{suffix}" for suffix in EXTENSION_SUFFIXES):
        if path.exists():
            return declared(path)
    return None


def declared(path: Path) -> ctypes.CDLL | None:
    """The library of a file; None where it is none, or one of other sources."""
    try:
        found = ctypes.CDLL(str(path))
    except OSError:  # built for another machine
        return None
    if found.native_layout() != LAYOUT:  # left over from an older version of these files
        return None
    found.native_instructions.argtypes, found.native_instructions.restype = (c_int,), c_char_p
    found.native_new.argtypes, found.native_new.restype = (POINTER(Model), c_char_p, c_int), c_void_p
    found.native_step.argtypes, found.native_step.restype = (c_void_p, POINTER(Step)), c_int
    found.native_free.argtypes, found.native_free.restype = (c_void_p,), None
    return found


def instruction_sets() -> list[str]:
    """Those that the library knows and this machine has, the best first; none without a library."""
    found = library()
    names: list[str] = []
    while found and (name := found.native_instructions(len(names))):
        names.append(name.decode())
    return names
