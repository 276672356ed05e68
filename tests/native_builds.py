"""Builds of some C files for tests: with warnings as errors, and with sanitizers."""

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


MATMUL_SOURCES = (
    "matmul.c",
    "quantized.c",
    "matmul_bfloat16.c",
    "matmul_int8.c",
    "matmul_float32.c",
    "attention_bfloat16.c",
    "norm.c",
    "vision.c",
)


def compile_sources(folder, names, *flags):
    """The path of a library of some C files and `cpu.c`; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = folder / f"{Path(names[0]).stem}.so"
    files = [SOURCES / name for name in (*names, "cpu.c")]
    subprocess.run([compiler, *FLAGS, *flags, "-o", path, *files, "-lm"], check=True)
    return path


def load_sources(folder, names, *flags):
    """Such a library, built so that undefined behaviour ends the test; the functions it has are declared."""
    code = ctypes.CDLL(str(compile_sources(folder, names, *UNDEFINED_BEHAVIOUR, *flags)))
    for function, (result, arguments) in library.FUNCTIONS.items():
        if hasattr(code, function):
            getattr(code, function).restype, getattr(code, function).argtypes = result, arguments
    return code
