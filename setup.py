"""Compiles the C kernels into one library. Without a compiler the package is installed without them, and is slower.

With IDEFICS_REQUIRE_NATIVE=1 in the environment a failed compilation is an error instead.
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("src/idefics/native")
# Lets the compiler vectorise loops over floats: nothing reads errno or floating-point traps.
FLAGS = [
    "-std=gnu11",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-pthread",
]
if "-O" not in os.environ.get("CFLAGS", ""):
    FLAGS.append("-O3")
# No fused multiply-add: results are equal to Pillow's bit for bit.
FLAGS_BY_SOURCE = {"resize.c": ["-ffp-contract=off"]}


class BuildKernels(build_ext):
    """Builds a plain library that is loaded with ctypes and does not depend on a Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's file without the suffix of a Python version."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Compiles each source with its own flags."""
        objects = []
        for source in ext.sources:
            flags = FLAGS + FLAGS_BY_SOURCE.get(Path(source).name, [])
            objects += self.compiler.compile(
                [source], self.build_temp, extra_postargs=flags, depends=ext.depends
            )
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), libraries=["m"], extra_postargs=["-pthread"]
        )


class PythonlessWheel(bdist_wheel):
    """One wheel for every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform of this build, for any Python 3 and any ABI."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PythonlessWheel},
    ext_modules=[
        Extension(
            "idefics.native._kernels",
            sorted(map(str, FOLDER.glob("*.c"))),
            depends=sorted(map(str, FOLDER.glob("*.h"))),
            optional=os.environ.get("IDEFICS_REQUIRE_NATIVE", "") in ("", "0"),
        )
    ],
)
