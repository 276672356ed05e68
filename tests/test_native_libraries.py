"""The C code is there: where a compiler is, and always where CI says so, each library was built and can be loaded.

Tests of the C code are skipped where a library is missing; these are what fails then.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from idefics.engine.native.library import instruction_sets

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "idefics"
LIBRARIES = re.findall(r'^ +"idefics\.(\S+)",$', (ROOT / "setup.py").read_text(), re.M)
NATIVE_REQUIRED = os.environ.get("IDEFICS_REQUIRE_NATIVE", "0") == "1"

built = pytest.mark.skipif(
    not NATIVE_REQUIRED and not shutil.which("cc"),
    reason="no C compiler, and IDEFICS_REQUIRE_NATIVE=1 is not set",
)


def compiled_path(name):
    """The file that `setup.py` builds for a library, or None."""
    paths = [PACKAGE / f"{name.replace('.', '/')}{suffix}" for suffix in EXTENSION_SUFFIXES]
    return next(filter(Path.exists, paths), None)


def test_setup_names_every_folder_of_c_code():
    folders = {path.parent.parent for path in PACKAGE.glob("*/native/*.c")}
    assert len(LIBRARIES) == len(folders) == 4


@built
@pytest.mark.parametrize("name", LIBRARIES)
def test_each_library_is_compiled_and_loads(name):
    path = compiled_path(name)
    assert path, f"idefics.{name} was not compiled: python setup.py build_ext --inplace says why"
    ctypes.CDLL(str(path))


@built
def test_the_decode_step_is_of_these_sources():
    assert instruction_sets(), "the library is older than the structs of structures.py: compile it again"


def copy_with_broken_source(folder):
    """What `setup.py` builds from, each file of C code next to empty, with an error in one of the decode step."""
    shutil.copy(ROOT / "setup.py", folder)
    for source in PACKAGE.glob("*/native/*.c"):
        (copy := folder / source.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        broken = source.name == "kernel_portable.c"
        copy.write_text("#error planted\n" if broken else f"int of_{source.stem};\n")


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("required", [False, True])
def test_code_that_does_not_compile_is_an_error_where_it_is_required(tmp_path, required):
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
def test_the_sanitizers_do_not_hide_a_build_that_breaks(tmp_path):
    copy_with_broken_source(tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "sanitize", tmp_path / "scripts")
    python = tmp_path / "python"  # one whose tests are always green
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo tested && exit 0\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    sanitize = [tmp_path / "scripts" / "sanitize", python]
    done = subprocess.run(sanitize, capture_output=True, text=True, check=False)
    assert "planted" in done.stderr
    assert done.returncode != 0
    assert "tested" not in done.stdout, "tests ran without the library"
