"""The kernels in C are there: where a compiler is, and always where CI says so, the library was built and loads.

Tests of the C code are skipped where the library is missing; these are what fails then.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from idefics.native import library, structures

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "idefics"
NATIVE_REQUIRED = os.environ.get("IDEFICS_REQUIRE_NATIVE", "0") == "1"

built = pytest.mark.skipif(
    not NATIVE_REQUIRED and not shutil.which("cc"),
    reason="no C compiler, and IDEFICS_REQUIRE_NATIVE=1 is not set",
)


def compile_text(folder, text):
    """A library of some C code."""
    (source := folder / "some.c").write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", made := folder / "some.so"], check=True)
    return made


@built
def test_the_library_is_compiled_and_loads():
    assert library.missing_reason() is None, "python setup.py build_ext --inplace says why"
    assert set(library.describe_kernels()) == set(library.VARIANTS)


def test_header_and_python_declare_the_same():
    header = (PACKAGE / "native" / "api.h").read_text()
    names = re.search(r"enum \{ (PORTABLE[^}]*) \}", header).group(1).split(", ")
    assert names == [one.name for one in library.InstructionSet]
    assert f"STRUCT_VERSION = {structures.STRUCT_VERSION} }}" in header
    assert set(re.findall(r"^API .*\b(idefics_\w+)\(", header, re.M)) == set(library.FUNCTIONS)


@built
def test_every_processor_has_the_portable_kernel():
    assert library.available_instruction_sets("decode step")[-1] is library.InstructionSet.PORTABLE


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("text", ["int idefics_struct_version(void) { return -1; }", "int other;"])
def test_a_library_of_other_sources_is_not_used(tmp_path, text):
    with pytest.raises(library.KernelsMissing, match="other sources"):
        library.open_library(compile_text(tmp_path, text))


def test_a_library_of_another_machine_is_not_used(tmp_path):
    (tmp_path / "some.so").write_bytes(b"no library")
    with pytest.raises(library.KernelsMissing, match="another machine"):
        library.open_library(tmp_path / "some.so")


def test_a_library_that_was_not_compiled_says_what_to_do(tmp_path):
    with pytest.raises(library.KernelsMissing, match="install a C compiler"):
        library.open_library(tmp_path / "some.so")


def copy_with_broken_source(folder):
    """What `setup.py` builds from, each C file nearly empty, with an error in one of the decode step."""
    shutil.copy(ROOT / "setup.py", folder)
    for source in (PACKAGE / "native").glob("*.c"):
        (copy := folder / source.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        broken = source.name == "decode_portable.c"
        copy.write_text("#error planted\n" if broken else f"int of_{source.stem};\n")


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("required", [False, True])
def test_code_that_does_not_compile_is_an_error_if_required(tmp_path, required):
    copy_with_broken_source(tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=tmp_path,
        env={**os.environ, "IDEFICS_REQUIRE_NATIVE": str(int(required))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "planted" in done.stderr + done.stdout
    assert (done.returncode != 0) is required, done.stderr


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_sanitize_fails_if_the_code_does_not_compile(tmp_path):
    copy_with_broken_source(tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "sanitize", tmp_path / "scripts")
    python = tmp_path / "python"  # a Python whose tests always pass
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo tested && exit 0\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    sanitize = [tmp_path / "scripts" / "sanitize", python]
    done = subprocess.run(sanitize, capture_output=True, text=True, check=False)
    assert "planted" in done.stderr
    assert done.returncode != 0
    assert "tested" not in done.stdout, "tests ran without the library"
