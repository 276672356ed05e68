"""Builds of single C files for tests: with warnings as errors, and with sanitizers."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from idefics.native import library

SOURCES = Path(library.__file__).parent
FLAGS = [
    "-std=gnu11",
    "-O2",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
]
UNDEFINED_BEHAVIOUR = ["-g", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"]


def compile_source(folder, name, *flags):
    """The path of a library of one C file and `cpu.c`; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = folder / f"{Path(name).stem}.so"
    subprocess.run(
        [compiler, *FLAGS, *flags, "-o", path, SOURCES / name, SOURCES / "cpu.c", "-lm"], check=True
    )
    return path


def load_source(folder, name, *flags):
    """Such a library, built so that undefined behaviour ends the test; the functions it has are declared."""
    code = ctypes.CDLL(str(compile_source(folder, name, *UNDEFINED_BEHAVIOUR, *flags)))
    for function, (result, arguments) in library.FUNCTIONS.items():
        if hasattr(code, function):
            getattr(code, function).restype, getattr(code, function).argtypes = result, arguments
    return code
