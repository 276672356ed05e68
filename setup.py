"""Compiles the kernels in C. Where no compiler is, the package works without them, slower."""

from setuptools import Extension, setup

NATIVE = "src/idefics/processing/native"

setup(
    ext_modules=[
        Extension(
            "idefics.processing._pixels",  # a plain library, read through ctypes: it does not know Python
            [f"{NATIVE}/pixels.c"],
            depends=[f"{NATIVE}/passes.h"],
            # A product and a sum stay two roundings, as in the Pillow that is followed.
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off"],
            libraries=["m"],
            optional=True,
        )
    ]
)
