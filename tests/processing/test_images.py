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
from idefics.processing.image_processor import open_and_preprocess, preprocess_image
from idefics.processing.resize import to_pixel_array
from idefics.processing.tile_plan import compute_tile_grid, resize_longest_edge, round_up_to_tiles
from idefics.processing.to_rgb import to_rgb
from processing.pictures_tiny import (
    CROSS_ATTENTION_PLAN,
    PLAN_BY_NAME,
    TILES_PLAN,
    UNSPLIT_PLAN,
    encode_picture,
    encode_with_orientation,
    open_trusted,
    random_picture,
    random_pixels,
    split_into_frames,
)

every_plan = pytest.mark.parametrize("plan", PLAN_BY_NAME.values(), ids=PLAN_BY_NAME)


def make_transparent_palette():
    image = random_picture("P")
    image.info["transparency"] = 3
    return image


def make_transparent_color():
    image = random_picture("RGB")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


PICTURE_BY_KIND = {
    **{mode: random_picture(mode) for mode in ("RGB", "RGBA", "P", "LA", "L", "1", "CMYK", "YCbCr")},
    "palette with transparency": make_transparent_palette(),
    "RGB with a transparent colour": make_transparent_color(),
    "1x1": random_picture("RGB", (1, 1)),
    "1x4000": random_picture("RGB", (1, 4000)),
    "4000x1": random_picture("RGB", (4000, 1)),
    "4000x3": random_picture("RGB", (4000, 3)),
    "one tile": random_picture("RGB", (16, 16)),
    "exact grid": random_picture("RGB", (64, 32)),
    "odd": random_picture("RGB", (65, 31)),
    "tall": random_picture("RGB", (20, 61)),
}
every_kind = pytest.mark.parametrize("image", PICTURE_BY_KIND.values(), ids=PICTURE_BY_KIND)


@pytest.fixture(scope="module")
def reference():
    """plan -> a function of an image and switches, giving the released processor's frames (N, 3, h, w)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        pytest.importorskip("transformers")
        from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    def of(plan):
        common = {
            "image_mean": list(plan.mean),
            "image_std": list(plan.std),
            "rescale_factor": plan.rescale_factor,
        }
        if plan.longest_edge is None:
            made = IdeficsImageProcessorPil(image_size=plan.frame_size, **common)
            return lambda image, **switches: np.asarray(made(image, **switches))
        made = Idefics3ImageProcessorPil(
            size={"longest_edge": plan.longest_edge},
            max_image_size={"longest_edge": plan.frame_size},
            do_image_splitting=plan.do_image_splitting,
            **common,
        )
        return lambda image, **switches: np.asarray(made(image, **switches)["pixel_values"])[0]

    return of


@every_plan
@every_kind
def test_uint8_frames_are_the_released_ones(image, plan, reference):
    expected = reference(plan)(image, do_rescale=False, do_normalize=False)
    frames, rows, columns = split_into_frames(to_pixel_array(to_rgb(image)), plan)
    assert np.array_equal(np.stack(frames).transpose(0, 3, 1, 2), expected)
    assert len(frames) == rows * columns + 1


@every_plan
@every_kind
def test_normalised_frames_are_the_released_ones(image, plan, reference):
    tiles = preprocess_image(to_rgb(image), plan)
    assert all(frame.dtype == np.float32 and frame.flags["C_CONTIGUOUS"] for frame in tiles.frames)
    np.testing.assert_allclose(np.stack(tiles.frames), reference(plan)(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(451, 300), (1920, 1080), (1000, 1000), (500, 2000)])
@pytest.mark.parametrize(("side", "longest"), [(512, 2048), (364, 1456), (384, 1536)])
def test_released_grids(size, side, longest):
    """The same grid at every released size."""
    expected = {(451, 300): (3, 4), (1920, 1080): (3, 4), (1000, 1000): (4, 4), (500, 2000): (4, 1)}
    plan = dataclasses.replace(TILES_PLAN, frame_size=side, longest_edge=longest)
    assert compute_tile_grid(*size, plan) == expected[size]


def test_sizes_are_the_released_ones(reference):
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 5000, (300, 2)).tolist():
        for longest in (364, 1456, 2048, 5000):
            shape = np.broadcast_to(np.uint8(0), (3, height, width))
            assert resize_longest_edge(width, height, longest)[::-1] == get_resize_output_image_size(
                shape, longest
            )


def test_the_longest_edge_is_exact_and_the_other_even():
    """Also upwards; int(long / aspect), plus one where odd."""
    assert resize_longest_edge(100, 50, 2048) == (2048, 1024)
    assert resize_longest_edge(300, 451, 2048) == (1362, 2048)
    assert resize_longest_edge(451, 299, 2048) == (2048, 1358)  # 1357.7 -> 1357 -> 1358
    assert resize_longest_edge(4000, 1, 2048) == (2048, 1)
    assert resize_longest_edge(100, 50, 8192) == (4096, 2048)


def test_tiles_change_the_aspect_a_little():
    assert round_up_to_tiles(2048, 1362, 512) == (2048, 1536)
    assert round_up_to_tiles(1362, 2048, 512) == (1536, 2048)
    assert round_up_to_tiles(50, 16, 16) == (
        64,
        32,
    )  # the shorter follows the longer: int(64 / (50 / 16)) = 20
    assert round_up_to_tiles(16, 50, 16) == (32, 64)


def test_tiles_are_row_by_row_and_the_whole_is_last():
    array = np.zeros((32, 64, 3), np.uint8)
    for row in range(2):
        for column in range(4):
            array[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 10 * (4 * row + column)
    frames, rows, columns = split_into_frames(array, TILES_PLAN)
    assert (rows, columns) == (2, 4)
    assert [int(frame[8, 8, 0]) for frame in frames[:8]] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert len(np.unique(frames[8])) > 8


def test_the_whole_is_made_of_the_tile_multiple():
    """Three resizes, each rounded to uint8; not one from the original."""
    image = random_picture("RGB", (50, 37))
    lanczos = PIL.Image.Resampling.LANCZOS
    expected = image.resize((64, 48), lanczos).resize((64, 48), lanczos).resize((16, 16), lanczos)
    whole = split_into_frames(np.asarray(image), TILES_PLAN)[0][-1]
    assert np.array_equal(whole, np.asarray(expected))
    assert not np.array_equal(whole, np.asarray(image.resize((16, 16), lanczos)))


def test_a_small_picture_is_scaled_up_and_split():
    assert compute_tile_grid(1, 1, TILES_PLAN) == (4, 4)


def test_a_picture_that_fits_one_tile_is_used_whole():
    plan = dataclasses.replace(TILES_PLAN, longest_edge=16)
    tiles = preprocess_image(random_picture("RGB", (1, 1)), plan)
    assert (tiles.rows, tiles.columns, len(tiles.frames)) == (0, 0, 1)
    assert tiles.frames[0].shape == (3, 16, 16)


def test_no_pixel_of_a_real_picture_is_exactly_zero():
    """Released processors pad with zeros; a frame of ours can never be taken for padding."""
    grey = PIL.Image.new("RGB", (8, 8), (127, 127, 127))
    assert all((frame != 0).all() for frame in preprocess_image(grey, TILES_PLAN).frames)


@pytest.mark.parametrize("orientation", range(1, 9))
@every_plan
def test_upright_frames_are_the_released_ones(orientation, plan, reference):
    data = encode_with_orientation(orientation, "PNG")
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    expected = reference(plan)(upright, do_rescale=False, do_normalize=False)
    assert np.array_equal(
        np.stack(split_into_frames(to_pixel_array(open_trusted(data)), plan)[0]).transpose(0, 3, 1, 2),
        expected,
    )


def test_16_bit_grey_is_only_a_grey_picture_to_the_frames(reference):
    """What transformers makes of the picture that we scale to 8 bits is what we make of the 16 bits."""
    grey = random_pixels(23, 37, 1)
    wide = encode_picture(PIL.Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    expected = reference(TILES_PLAN)(PIL.Image.fromarray(grey), do_rescale=False, do_normalize=False)
    assert np.array_equal(
        np.stack(split_into_frames(to_pixel_array(open_trusted(wide)), TILES_PLAN)[0]).transpose(0, 3, 1, 2),
        expected,
    )


def test_equal_pictures_have_equal_keys():
    a, b = (
        preprocess_image(random_picture("RGB"), TILES_PLAN),
        preprocess_image(open_trusted(encode_picture(random_picture("RGB"), "PNG")), TILES_PLAN),
    )
    assert a.content_hash == b.content_hash
    assert len(a.content_hash) == 64


def test_other_pixels_sizes_and_plans_have_other_keys():
    image = PIL.Image.new("RGB", (4, 6))
    spot = image.copy()
    spot.putpixel((3, 5), (0, 0, 1))
    keys = [
        preprocess_image(each, TILES_PLAN).content_hash
        for each in (image, spot, PIL.Image.new("RGB", (6, 4)))
    ]
    keys += [
        preprocess_image(image, plan).content_hash
        for plan in (
            UNSPLIT_PLAN,
            CROSS_ATTENTION_PLAN,
            dataclasses.replace(TILES_PLAN, rescale_factor=1 / 256),
        )
    ]
    assert len(set(keys)) == 6


def test_a_picture_has_one_key_however_it_comes(tmp_path):
    """Its upright pixels are hashed: as a file of any kind, as bytes, as an object; another plan is another key."""
    path = tmp_path / "picture.png"
    path.write_bytes(encode_picture(random_picture("RGB"), "PNG"))
    sources = (
        path,
        path.read_bytes(),
        encode_picture(random_picture("RGB"), "BMP"),
        random_picture("RGB"),
        random_pixels(23, 37, 3),
    )
    closed = Fetcher(policy="off")
    keys = {
        open_and_preprocess(Picture(source), TILES_PLAN, closed, ImageDetail()).content_hash
        for source in sources
    }
    assert len(keys) == 1
    assert open_and_preprocess(Picture(path), UNSPLIT_PLAN, closed, ImageDetail()).content_hash not in keys


def test_frames_lie_one_after_another():
    """Nothing need be copied to make one tensor of them."""
    frames = preprocess_image(random_picture("RGB"), TILES_PLAN).frames
    starts = [frame.ctypes.data for frame in frames]
    assert np.diff(starts).tolist() == [frames[0].nbytes] * (len(frames) - 1)
