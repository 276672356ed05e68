"""Frames equal the released processors', bit for bit before normalising, for every kind of picture."""

import dataclasses
import hashlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from idefics.messages import ImageDetail, Picture
from idefics.processing import image_processor, pixel_hash
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess, preprocess_image
from idefics.processing.tile_plan import compute_tile_grid, size_scaled_up_to_tiles, size_with_longest_edge
from idefics.processing.to_rgb import to_rgb
from processing.pictures_tiny import (
    CONFIG_BY_NAME,
    CROSS_ATTENTION_CONFIG,
    TILES_CONFIG,
    UNSPLIT_CONFIG,
    encode_picture,
    encode_with_orientation,
    open_trusted,
    random_picture,
    random_pixels,
    split_into_frames,
)

every_config = pytest.mark.parametrize("config", CONFIG_BY_NAME.values(), ids=CONFIG_BY_NAME)


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
    """A function of a config that returns a function of an image: the released processor's frames (N, 3, h, w)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        pytest.importorskip("transformers")
        from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    def of(config):
        common = {
            "image_mean": list(config.mean),
            "image_std": list(config.std),
            "rescale_factor": config.rescale_factor,
        }
        if config.longest_edge is None:
            made = IdeficsImageProcessorPil(image_size=config.frame_size, **common)
            return lambda image, **switches: np.asarray(made(image, **switches))
        made = Idefics3ImageProcessorPil(
            size={"longest_edge": config.longest_edge},
            max_image_size={"longest_edge": config.frame_size},
            do_image_splitting=config.do_image_splitting,
            **common,
        )
        return lambda image, **switches: np.asarray(made(image, **switches)["pixel_values"])[0]

    return of


@every_config
@every_kind
def test_uint8_frames_are_the_released_ones(image, config, reference):
    expected = reference(config)(image, do_rescale=False, do_normalize=False)
    frames, rows, columns = split_into_frames(np.asarray(to_rgb(image)), config)
    assert np.array_equal(np.stack(frames).transpose(0, 3, 1, 2), expected)
    assert len(frames) == rows * columns + 1


@every_config
@every_kind
def test_normalised_frames_are_the_released_ones(image, config, reference):
    tiles = preprocess_image(to_rgb(image), config)
    assert all(frame.dtype == np.float32 and frame.flags["C_CONTIGUOUS"] for frame in tiles.frames)
    np.testing.assert_allclose(np.stack(tiles.frames), reference(config)(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(451, 300), (1920, 1080), (1000, 1000), (500, 2000)])
@pytest.mark.parametrize(("side", "longest"), [(512, 2048), (364, 1456), (384, 1536)])
def test_released_grids(size, side, longest):
    """The same grid at every released size."""
    expected = {(451, 300): (3, 4), (1920, 1080): (3, 4), (1000, 1000): (4, 4), (500, 2000): (4, 1)}
    config = dataclasses.replace(TILES_CONFIG, frame_size=side, longest_edge=longest)
    assert compute_tile_grid(*size, config) == expected[size]


def test_sizes_are_the_released_ones(reference):
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 5000, (300, 2)).tolist():
        for longest in (364, 1456, 2048, 5000):
            shape = np.broadcast_to(np.uint8(0), (3, height, width))
            assert size_with_longest_edge(width, height, longest)[::-1] == get_resize_output_image_size(
                shape, longest
            )


def test_the_longest_edge_is_exact_and_the_other_even():
    """Small pictures are enlarged; the short edge is int(long / aspect), plus one where odd."""
    assert size_with_longest_edge(100, 50, 2048) == (2048, 1024)
    assert size_with_longest_edge(300, 451, 2048) == (1362, 2048)
    assert size_with_longest_edge(451, 299, 2048) == (2048, 1358)  # 1357.7 -> 1357 -> 1358
    assert size_with_longest_edge(4000, 1, 2048) == (2048, 1)
    assert size_with_longest_edge(100, 50, 8192) == (4096, 2048)


def test_tiles_change_the_aspect_a_little():
    assert size_scaled_up_to_tiles(2048, 1362, 512) == (2048, 1536)
    assert size_scaled_up_to_tiles(1362, 2048, 512) == (1536, 2048)
    assert size_scaled_up_to_tiles(50, 16, 16) == (
        64,
        32,
    )  # the shorter follows the longer: int(64 / (50 / 16)) = 20
    assert size_scaled_up_to_tiles(16, 50, 16) == (32, 64)


def test_tiles_are_row_by_row_and_the_whole_is_last():
    array = np.zeros((32, 64, 3), np.uint8)
    for row in range(2):
        for column in range(4):
            array[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 10 * (4 * row + column)
    frames, rows, columns = split_into_frames(array, TILES_CONFIG)
    assert (rows, columns) == (2, 4)
    assert [int(frame[8, 8, 0]) for frame in frames[:8]] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert len(np.unique(frames[8])) > 8


def test_the_whole_is_made_of_the_tile_multiple():
    """It is resized three times, rounded to uint8 each time, not once from the original."""
    image = random_picture("RGB", (50, 37))
    lanczos = PIL.Image.Resampling.LANCZOS
    expected = image.resize((64, 48), lanczos).resize((64, 48), lanczos).resize((16, 16), lanczos)
    whole = split_into_frames(np.asarray(image), TILES_CONFIG)[0][-1]
    assert np.array_equal(whole, np.asarray(expected))
    assert not np.array_equal(whole, np.asarray(image.resize((16, 16), lanczos)))


def test_a_small_picture_is_scaled_up_and_split():
    assert compute_tile_grid(1, 1, TILES_CONFIG) == (4, 4)


def test_a_picture_that_fits_one_tile_is_used_whole():
    config = dataclasses.replace(TILES_CONFIG, longest_edge=16)
    tiles = preprocess_image(random_picture("RGB", (1, 1)), config)
    assert (tiles.rows, tiles.columns, len(tiles.frames)) == (0, 0, 1)
    assert tiles.frames[0].shape == (3, 16, 16)


def test_no_pixel_of_a_real_picture_is_exactly_zero():
    """Released processors pad with zeros; a frame of ours can never be taken for padding."""
    grey = PIL.Image.new("RGB", (8, 8), (127, 127, 127))
    assert all((frame != 0).all() for frame in preprocess_image(grey, TILES_CONFIG).frames)


@pytest.mark.parametrize("orientation", range(1, 9))
@every_config
def test_upright_frames_are_the_released_ones(orientation, config, reference):
    data = encode_with_orientation(orientation, "PNG")
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    expected = reference(config)(upright, do_rescale=False, do_normalize=False)
    assert np.array_equal(
        np.stack(split_into_frames(np.asarray(open_trusted(data)), config)[0]).transpose(0, 3, 1, 2),
        expected,
    )


def test_16_bit_grey_is_only_a_grey_picture_to_the_frames(reference):
    """The frames of a 16-bit picture are those that transformers makes of it scaled to 8 bits."""
    grey = random_pixels(23, 37, 1)
    wide = encode_picture(PIL.Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    expected = reference(TILES_CONFIG)(PIL.Image.fromarray(grey), do_rescale=False, do_normalize=False)
    assert np.array_equal(
        np.stack(split_into_frames(np.asarray(open_trusted(wide)), TILES_CONFIG)[0]).transpose(0, 3, 1, 2),
        expected,
    )


def test_equal_pictures_have_equal_keys():
    a, b = (
        preprocess_image(random_picture("RGB"), TILES_CONFIG),
        preprocess_image(open_trusted(encode_picture(random_picture("RGB"), "PNG")), TILES_CONFIG),
    )
    assert a.content_hash == b.content_hash
    assert len(a.content_hash) == 64


@pytest.mark.parametrize("size", [(1700, 300), (2100, 900), (1300, 1200)])
def test_keys_of_large_pictures_are_those_without_a_thread(size, monkeypatch):
    """A second thread copies and hashes what is large; the key and the frames do not depend on it."""
    image = random_picture("RGB", size)
    threaded = preprocess_image(image, TILES_CONFIG)
    monkeypatch.setattr(pixel_hash, "MIN_BYTES_FOR_THREAD", 10**9)
    monkeypatch.setattr(image_processor, "MIN_WIDTH_FOR_THREAD", 10**9)
    alone = preprocess_image(image, TILES_CONFIG)
    assert threaded.content_hash == alone.content_hash
    assert all(map(np.array_equal, threaded.frames, alone.frames))


def test_small_pixels_after_large_ones_are_hashed_in_order(monkeypatch):
    monkeypatch.setattr(pixel_hash, "MIN_BYTES_FOR_THREAD", 100)
    parts = [np.full(count, count % 256, np.uint8) for count in (7, 500, 9, 2000, 1)]
    with ThreadPoolExecutor(1) as thread:
        hashed = pixel_hash.PixelHash("prefix", thread)
        for part in parts:
            hashed.update(part)
        assert hashed.hexdigest() == hashlib.sha256(b"prefix" + b"".join(map(bytes, parts))).hexdigest()


def test_other_pixels_sizes_and_configs_have_other_keys():
    image = PIL.Image.new("RGB", (4, 6))
    spot = image.copy()
    spot.putpixel((3, 5), (0, 0, 1))
    keys = [
        preprocess_image(each, TILES_CONFIG).content_hash
        for each in (image, spot, PIL.Image.new("RGB", (6, 4)))
    ]
    keys += [
        preprocess_image(image, config).content_hash
        for config in (
            UNSPLIT_CONFIG,
            CROSS_ATTENTION_CONFIG,
            dataclasses.replace(TILES_CONFIG, rescale_factor=1 / 256),
        )
    ]
    assert len(set(keys)) == 6


def test_a_picture_has_one_key_however_it_comes(tmp_path):
    """The upright pixels are hashed, whatever they come from: files of any format, bytes, objects."""
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
        open_and_preprocess(Picture(source), TILES_CONFIG, closed, ImageDetail()).content_hash
        for source in sources
    }
    assert len(keys) == 1
    assert open_and_preprocess(Picture(path), UNSPLIT_CONFIG, closed, ImageDetail()).content_hash not in keys


def test_frames_lie_one_after_another():
    """So that a tensor of them needs no copy."""
    frames = preprocess_image(random_picture("RGB"), TILES_CONFIG).frames
    starts = [frame.ctypes.data for frame in frames]
    assert np.diff(starts).tolist() == [frames[0].nbytes] * (len(frames) - 1)
