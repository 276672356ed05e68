"""Compiles the kernels in C. Where no compiler is, the package works without them, slower.

With IDEFICS_REQUIRE_NATIVE=1 in the environment a library that does not compile is an error instead.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

PIXELS, DECODE = Path("src/idefics/processing/native"), Path("src/idefics/engine/native")
ATTENTION, PASSES = Path("src/idefics/nn/native"), Path("src/idefics/quant/native")
OPTIONAL = os.environ.get("IDEFICS_REQUIRE_NATIVE", "") in ("", "0")

# Plain libraries, read through ctypes: they do not know Python.
setup(
    ext_modules=[
        Extension(
            "idefics.processing._pixels",
            [str(PIXELS / "pixels.c")],
            depends=[str(PIXELS / "passes.h")],
            # A product and a sum stay two roundings, as in the Pillow that is followed.
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            libraries=["m"],
            optional=OPTIONAL,
        ),
        Extension(
            "idefics.nn._attention",
            [str(ATTENTION / "attention.c")],
            extra_compile_args=["-std=gnu11", "-O3", "-Wno-psabi"],
            libraries=["m"],
            optional=OPTIONAL,
        ),
        Extension(
            "idefics.quant._passes",
            [str(PASSES / "passes.c")],
            extra_compile_args=["-std=gnu11", "-O3"],
            optional=OPTIONAL,
        ),
        Extension(
            "idefics.engine.native._kernel",
            sorted(map(str, DECODE.glob("*.c"))),
            depends=sorted(map(str, DECODE.glob("*.h"))),
            # Loops over floats may become vectors: nobody asks for errno or floating-point traps.
            extra_compile_args=["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
            extra_link_args=["-pthread"],
            libraries=["m"],
            optional=OPTIONAL,
        ),
    ]
)
