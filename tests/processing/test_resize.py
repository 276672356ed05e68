"""The C kernel resizes as Pillow does, bit for bit, with every instruction set that this machine has."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import PIL
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics.config import ResampleFilter
from idefics.native import library
from idefics.processing import resize as module
from idefics.processing.resize import (
    NativeResizer,
    iterate_pixel_strips,
    normalize_with_numpy,
    resize_with_pillow,
)
from native_builds import compile_sources, load_sources
from processing.pictures_tiny import TILES_CONFIG, random_pixels

edges = st.integers(1, 90)
FILTERS = sorted({*get_args(ResampleFilter)} - {"nearest"})  # that one is no convolution


@pytest.fixture(scope="module", autouse=True)
def compiled_library(tmp_path_factory):
    """The kernel compiled so that undefined behaviour ends the test."""
    found = load_sources(tmp_path_factory.mktemp("kernel"), ("resize.c",), "-ffp-contract=off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_library", lambda: found)
        yield found


@pytest.fixture(scope="module", params=library.VARIANTS["resizing"], ids=lambda one: one.label)
def native_resize(request, compiled_library):
    if request.param not in library.available_instruction_sets("resizing"):
        pytest.skip("this processor has no such instructions")
    return NativeResizer(request.param)


def resize_whole(native, pixels, size, resample):
    return native.resize_strips([pixels], pixels.shape[1::-1], size, resample)


def assert_equals_pillow(native, pixels, size, resample):
    ours, theirs = resize_whole(native, pixels, size, resample), resize_with_pillow(pixels, size, resample)
    return ours.shape == (size[1], size[0], 3) and np.array_equal(ours, theirs)


@pytest.mark.parametrize("resample", FILTERS)
@settings(max_examples=60, deadline=None)
@given(edges, edges, edges, edges, st.integers(0, 2**32 - 1), st.booleans())
def test_any_size_is_resized_as_pillow_does(native_resize, resample, width, height, wide, high, seed, harsh):
    """Black and white pictures overshoot at every edge."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if harsh:
        pixels = (pixels > 127).astype(np.uint8) * 255
    assert assert_equals_pillow(native_resize, pixels, (wide, high), resample)


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 1), (64, 64)), ((700, 3), (512, 512)), ((3, 900), (16, 16)), ((640, 480), (2048, 1536))],
)
def test_long_rows_and_columns_are_resized_as_pillow_does(native_resize, before, after):
    assert assert_equals_pillow(native_resize, random_pixels(*before[::-1], 3), after, "lanczos")


@pytest.mark.parametrize("height", [1, 59, 60, 61, 99])
def test_the_width_is_resized_first(native_resize, height):
    """As until Pillow 12: values are rounded between the passes, so that the order matters."""
    pixels = random_pixels(100, 100, 3) // 128 * 255
    assert assert_equals_pillow(native_resize, pixels, (80, height), "lanczos")
    image = PIL.Image.fromarray(pixels)
    columns_first = image.resize((100, height), PIL.Image.Resampling.LANCZOS).resize((80, height), 1)
    assert not np.array_equal(
        resize_whole(native_resize, pixels, (80, height), "lanczos"), np.asarray(columns_first)
    )


@pytest.mark.skipif(not PIL.__version__.startswith(("11.", "12.")), reason="that Pillow changed the order")
@pytest.mark.parametrize("resample", get_args(ResampleFilter))
def test_that_is_what_pillow_did_in_one_call(resample):
    pixels = random_pixels(100, 100, 3) // 128 * 255
    at_once = PIL.Image.fromarray(pixels).resize((80, 30), PIL.Image.Resampling[resample.upper()])
    assert np.array_equal(resize_with_pillow(pixels, (80, 30), resample), np.asarray(at_once))


def test_hammings_constants_are_pillows_floats(native_resize):
    """They show in few pixels."""
    assert assert_equals_pillow(native_resize, random_pixels(1200, 1000, 3), (111, 1500), "hamming")


def test_a_part_of_a_picture_is_resized_and_normalised_like_its_copy(native_resize):
    pixels = random_pixels(40, 50, 3)
    part = pixels[3:30, 7:41]
    assert np.array_equal(
        resize_whole(native_resize, part, (20, 20), "bicubic"),
        resize_whole(native_resize, part.copy(), (20, 20), "bicubic"),
    )
    table = module._normalization_table(TILES_CONFIG)
    ours, theirs = np.empty((3, 27, 34), np.float32), np.empty((3, 27, 34), np.float32)
    native_resize.normalize(part, table, ours)
    normalize_with_numpy(part, table, theirs)
    assert np.array_equal(ours, theirs)
    native_resize.normalize(part[:, ::2], table, turned := np.empty((3, 27, 17), np.float32))
    assert np.array_equal(turned, theirs[:, :, ::2])


@pytest.mark.parametrize(("width", "offset"), [(8, 0), (8, 1), (9, 0), (3, 0)])
def test_frames_of_any_width_and_address_are_normalised(native_resize, width, offset):
    """Rows of whole vectors are written past the caches."""
    pixels, table = random_pixels(5, width, 3), module._normalization_table(TILES_CONFIG)
    memory = np.empty(3 * 5 * width + offset, np.float32)
    ours, theirs = memory[offset:].reshape(3, 5, width), np.empty((3, 5, width), np.float32)
    native_resize.normalize(pixels, table, ours)
    normalize_with_numpy(pixels, table, theirs)
    assert np.array_equal(ours, theirs)


def test_threads_may_resize_at_once(native_resize):
    pictures = [random_pixels(60 + index, 70, 3) for index in range(16)]
    alone = [resize_whole(native_resize, pixels, (64, 64), "lanczos") for pixels in pictures]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(
            lambda pixels: resize_whole(native_resize, pixels, (64, 64), "lanczos"), pictures
        )
        assert all(map(np.array_equal, together, alone))


@pytest.mark.parametrize("size", [(300, 35), (35, 300), (70, 20), (20, 20), (70, 150), (70, 300)])
@pytest.mark.parametrize("rows", [1, 15, 16, 50])
def test_a_picture_may_come_in_strips(native_resize, size, rows):
    """Of any height: larger, smaller, and with one side or both as they are."""
    pixels = random_pixels(150, 70, 3)
    expected = resize_with_pillow(pixels, size, "lanczos")
    with_fourth_byte = np.concatenate([pixels, random_pixels(150, 70, 1)[:, :, None]], axis=2)
    for whole in (pixels, with_fourth_byte):
        strips = (whole[top : top + rows] for top in range(0, 150, rows))
        ours = native_resize.resize_strips(strips, (70, 150), size, "lanczos")
        assert np.array_equal(ours, expected)


@pytest.mark.parametrize("resample", ["lanczos", "nearest"])
@pytest.mark.parametrize("height", [1, module.ROWS_PER_STRIP - 1, 2 * module.ROWS_PER_STRIP + 3])
def test_a_pil_picture_is_resized_strip_by_strip(height, resample):
    pixels = random_pixels(height, 5, 3)
    for four_bytes in (False, True):
        strips = list(iterate_pixel_strips(PIL.Image.fromarray(pixels), four_bytes=four_bytes))
        assert np.array_equal(np.concatenate(strips)[:, :, :3], pixels)
        ours = module.resize_strips(strips, (5, height), (7, 40), resample)
        assert np.array_equal(ours, resize_with_pillow(pixels, (7, 40), resample))


def test_without_a_kernel_pillow_and_numpy_work(monkeypatch):
    monkeypatch.setattr(library, "load_library", lambda: None)
    monkeypatch.setattr(module, "get_native_resizer", module.get_native_resizer.__wrapped__)
    assert module.get_native_resizer() is None
    assert module.resize(random_pixels(9, 8, 3), (4, 5), "bilinear").shape == (5, 4, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizer's library is found by its name on Linux")
def test_no_byte_beyond_the_pictures_is_touched(tmp_path):
    """The same sizes under AddressSanitizer, in a process of its own."""
    path = compile_sources(tmp_path, ("resize.c",), "-g", "-fsanitize=address", "-fno-omit-frame-pointer")
    runtime = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    code = f"""
import ctypes, numpy as np
from idefics.native import library
from idefics.processing.resize import NativeResizer
code = ctypes.CDLL({str(path)!r})
for name in ("idefics_resize_begin", "idefics_resize_add", "idefics_resize_end", "idefics_normalize"):
    getattr(code, name).restype, getattr(code, name).argtypes = library.FUNCTIONS[name]
library.load_library = lambda: code
rng = np.random.default_rng(0)
for _ in range(150):
    width, height, wide, high = map(int, rng.integers(1, 80, 4))
    for kind in library.available_instruction_sets("resizing"):
        native = NativeResizer(kind)
        strips = np.array_split(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), 2)
        out = native.resize_strips(strips, (width, height), (wide, high), "lanczos")
        native.normalize(out, np.zeros((3, 256), np.float32), np.empty((3, high, wide), np.float32))
print("clean")
"""
    source = str(Path(module.__file__).parents[2])
    environment = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "clean\n", done.stderr[-2000:]
