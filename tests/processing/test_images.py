"""Frames equal the released processors', bit for bit before normalising, for every kind of picture."""

import dataclasses
import io
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from idefics.messages import ImageDetail, Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.images import prepare, prepared, split
from idefics.processing.resize import pixels_of
from idefics.processing.sizes import grid, longest_edge, tile_multiple
from idefics.processing.to_rgb import rgb
from processing.pictures_tiny import BESIDE, PLANS, TILES, UNSPLIT, encoded, noise, opened, oriented, picture

every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def transparent_palette():
    image = picture("P")
    image.info["transparency"] = 3
    return image


def transparent_colour():
    image = picture("RGB")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


KINDS = {
    **{mode: picture(mode) for mode in ("RGB", "RGBA", "P", "LA", "L", "1", "CMYK", "YCbCr")},
    "palette with transparency": transparent_palette(),
    "RGB with a transparent colour": transparent_colour(),
    "1x1": picture("RGB", (1, 1)),
    "1x4000": picture("RGB", (1, 4000)),
    "4000x1": picture("RGB", (4000, 1)),
    "4000x3": picture("RGB", (4000, 3)),
    "one tile": picture("RGB", (16, 16)),
    "exact grid": picture("RGB", (64, 32)),
    "odd": picture("RGB", (65, 31)),
    "tall": picture("RGB", (20, 61)),
}
every_kind = pytest.mark.parametrize("image", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def reference():
    """plan -> a function of an image and switches, giving the released processor's frames (N, 3, h, w)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        pytest.importorskip("transformers")
        from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    def of(plan):
        common = {"image_mean": list(plan.mean), "image_std": list(plan.std), "rescale_factor": plan.scale}
        if plan.longest is None:
            made = IdeficsImageProcessorPil(image_size=plan.side, **common)
            return lambda image, **switches: np.asarray(made(image, **switches))
        made = Idefics3ImageProcessorPil(
            size={"longest_edge": plan.longest},
            max_image_size={"longest_edge": plan.side},
            do_image_splitting=plan.splitting,
            **common,
        )
        return lambda image, **switches: np.asarray(made(image, **switches)["pixel_values"])[0]

    return of


@every_plan
@every_kind
def test_uint8_frames_are_the_released_ones(image, plan, reference):
    expected = reference(plan)(image, do_rescale=False, do_normalize=False)
    frames, rows, columns = split(pixels_of(rgb(image)), plan)
    assert np.array_equal(np.stack(frames).transpose(0, 3, 1, 2), expected)
    assert len(frames) == rows * columns + 1


@every_plan
@every_kind
def test_normalised_frames_are_the_released_ones(image, plan, reference):
    tiles = prepare(rgb(image), plan)
    assert all(frame.dtype == np.float32 and frame.flags["C_CONTIGUOUS"] for frame in tiles.frames)
    np.testing.assert_allclose(np.stack(tiles.frames), reference(plan)(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(451, 300), (1920, 1080), (1000, 1000), (500, 2000)])
@pytest.mark.parametrize(("side", "longest"), [(512, 2048), (364, 1456), (384, 1536)])
def test_released_grids(size, side, longest):
    """The same grid at every released size."""
    expected = {(451, 300): (3, 4), (1920, 1080): (3, 4), (1000, 1000): (4, 4), (500, 2000): (4, 1)}
    plan = dataclasses.replace(TILES, side=side, longest=longest)
    assert grid(*size, plan) == expected[size]


def test_sizes_are_the_released_ones(reference):
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 5000, (300, 2)).tolist():
        for longest in (364, 1456, 2048, 5000):
            shape = np.broadcast_to(np.uint8(0), (3, height, width))
            assert longest_edge(width, height, longest)[::-1] == get_resize_output_image_size(shape, longest)


def test_the_longest_edge_is_exact_and_the_other_even():
    """Also upwards; int(long / aspect), plus one where odd."""
    assert longest_edge(100, 50, 2048) == (2048, 1024)
    assert longest_edge(300, 451, 2048) == (1362, 2048)
    assert longest_edge(451, 299, 2048) == (2048, 1358)  # 1357.7 -> 1357 -> 1358
    assert longest_edge(4000, 1, 2048) == (2048, 1)
    assert longest_edge(100, 50, 8192) == (4096, 2048)


def test_tiles_change_the_aspect_a_little():
    assert tile_multiple(2048, 1362, 512) == (2048, 1536)
    assert tile_multiple(1362, 2048, 512) == (1536, 2048)
    assert tile_multiple(50, 16, 16) == (64, 32)  # the shorter follows the longer: int(64 / (50 / 16)) = 20
    assert tile_multiple(16, 50, 16) == (32, 64)


def test_tiles_are_row_by_row_and_the_whole_is_last():
    array = np.zeros((32, 64, 3), np.uint8)
    for row in range(2):
        for column in range(4):
            array[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 10 * (4 * row + column)
    frames, rows, columns = split(array, TILES)
    assert (rows, columns) == (2, 4)
    assert [int(frame[8, 8, 0]) for frame in frames[:8]] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert len(np.unique(frames[8])) > 8


def test_the_whole_is_made_of_the_tile_multiple():
    """Three resizes, each rounded to uint8; not one from the original."""
    image = picture("RGB", (50, 37))
    lanczos = PIL.Image.Resampling.LANCZOS
    expected = image.resize((64, 48), lanczos).resize((64, 48), lanczos).resize((16, 16), lanczos)
    whole = split(np.asarray(image), TILES)[0][-1]
    assert np.array_equal(whole, np.asarray(expected))
    assert not np.array_equal(whole, np.asarray(image.resize((16, 16), lanczos)))


def test_a_small_picture_is_scaled_up_and_split():
    assert grid(1, 1, TILES) == (4, 4)


def test_a_picture_that_fits_one_tile_is_used_whole():
    plan = dataclasses.replace(TILES, longest=16)
    tiles = prepare(picture("RGB", (1, 1)), plan)
    assert (tiles.rows, tiles.columns, len(tiles.frames)) == (0, 0, 1)
    assert tiles.frames[0].shape == (3, 16, 16)


def test_no_pixel_of_a_real_picture_is_exactly_zero():
    """Released processors pad with zeros; a frame of ours can never be taken for padding."""
    grey = PIL.Image.new("RGB", (8, 8), (127, 127, 127))
    assert all((frame != 0).all() for frame in prepare(grey, TILES).frames)


@pytest.mark.parametrize("orientation", range(1, 9))
@every_plan
def test_upright_frames_are_the_released_ones(orientation, plan, reference):
    data = oriented(orientation, "PNG")
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    expected = reference(plan)(upright, do_rescale=False, do_normalize=False)
    assert np.array_equal(np.stack(split(pixels_of(opened(data)), plan)[0]).transpose(0, 3, 1, 2), expected)


def test_16_bit_grey_is_only_a_grey_picture_to_the_frames(reference):
    """What transformers makes of the picture that we scale to 8 bits is what we make of the 16 bits."""
    grey = noise(23, 37, 1)
    wide = encoded(PIL.Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    expected = reference(TILES)(PIL.Image.fromarray(grey), do_rescale=False, do_normalize=False)
    assert np.array_equal(np.stack(split(pixels_of(opened(wide)), TILES)[0]).transpose(0, 3, 1, 2), expected)


def test_equal_pictures_have_equal_keys():
    a, b = prepare(picture("RGB"), TILES), prepare(opened(encoded(picture("RGB"), "PNG")), TILES)
    assert a.key == b.key
    assert len(a.key) == 64


def test_other_pixels_sizes_and_plans_have_other_keys():
    image = PIL.Image.new("RGB", (4, 6))
    spot = image.copy()
    spot.putpixel((3, 5), (0, 0, 1))
    keys = [prepare(each, TILES).key for each in (image, spot, PIL.Image.new("RGB", (6, 4)))]
    keys += [
        prepare(image, plan).key for plan in (UNSPLIT, BESIDE, dataclasses.replace(TILES, scale=1 / 256))
    ]
    assert len(set(keys)) == 6


def test_a_picture_has_one_key_however_it_comes(tmp_path):
    """Its upright pixels are hashed: as a file of any kind, as bytes, as an object; another plan is another key."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture("RGB"), "PNG"))
    sources = (path, path.read_bytes(), encoded(picture("RGB"), "BMP"), picture("RGB"), noise(23, 37, 3))
    closed = Fetcher(policy="off")
    keys = {prepared(Picture(source), TILES, closed, ImageDetail()).key for source in sources}
    assert len(keys) == 1
    assert prepared(Picture(path), UNSPLIT, closed, ImageDetail()).key not in keys


def test_frames_lie_one_after_another():
    """Nothing need be copied to make one tensor of them."""
    frames = prepare(picture("RGB"), TILES).frames
    starts = [frame.ctypes.data for frame in frames]
    assert np.diff(starts).tolist() == [frames[0].nbytes] * (len(frames) - 1)
