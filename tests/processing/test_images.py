"""Frames equal the released processors', bit for bit before normalising, for every kind of picture."""

import base64
import contextlib
import dataclasses
import io
import re
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from idefics.config import ImagePlan
from idefics.errors import BadPicture
from idefics.messages import Picture
from idefics.processing import images
from idefics.processing.fetch import Fetcher
from idefics.processing.images import grid, longest_edge, open_picture, prepare, rgb, split, tile_multiple

TILES = ImagePlan(
    side=16,
    longest=64,
    splitting=True,
    resample="lanczos",
    scale=1 / 255,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    tokens=1,
)
UNSPLIT = dataclasses.replace(TILES, splitting=False)
BESIDE = ImagePlan(
    side=24,
    longest=None,
    splitting=False,
    resample="bicubic",
    scale=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    tokens=1,
)
PLANS = {"tiles": TILES, "unsplit": UNSPLIT, "beside": BESIDE}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def noise(height, width, channels, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(mode, size=(37, 23)):
    width, height = size
    channels = {"L": 1, "1": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}[mode]
    array = noise(height, width, channels)
    if mode in {"1", "P"}:
        return PIL.Image.fromarray(array).convert(mode)
    if mode in {"CMYK", "YCbCr", "LA"}:
        return PIL.Image.frombytes(mode, size, array.tobytes())
    return PIL.Image.fromarray(array, mode=None)


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
    frames, rows, columns = split(rgb(image), plan)
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
    """FAMILY 1.5: the same grid at every released size."""
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
    """FAMILY 3.4: also upwards; int(long / aspect), plus one where odd."""
    assert longest_edge(100, 50, 2048) == (2048, 1024)
    assert longest_edge(300, 451, 2048) == (1362, 2048)
    assert longest_edge(451, 299, 2048) == (2048, 1358)  # 1357.7 -> 1357 -> 1358
    assert longest_edge(4000, 1, 2048) == (2048, 1)
    assert longest_edge(100, 50, 8192) == (4096, 2048)


def test_tiles_change_the_aspect_a_little():
    assert tile_multiple(2048, 1362, 512) == (2048, 1536)
    assert tile_multiple(1362, 2048, 512) == (1536, 2048)


def test_tiles_are_row_by_row_and_the_whole_is_last():
    array = np.zeros((32, 64, 3), np.uint8)
    for row in range(2):
        for column in range(4):
            array[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 10 * (4 * row + column)
    frames, rows, columns = split(PIL.Image.fromarray(array), TILES)
    assert (rows, columns) == (2, 4)
    assert [int(frame[8, 8, 0]) for frame in frames[:8]] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert len(np.unique(frames[8])) > 8


def test_the_whole_is_made_of_the_tile_multiple():
    """FAMILY 3.4: three resizes, each rounded to uint8; not one from the original."""
    image = picture("RGB", (50, 37))
    lanczos = PIL.Image.Resampling.LANCZOS
    expected = image.resize((64, 48), lanczos).resize((64, 48), lanczos).resize((16, 16), lanczos)
    assert np.array_equal(split(image, TILES)[0][-1], np.asarray(expected))
    assert not np.array_equal(split(image, TILES)[0][-1], np.asarray(image.resize((16, 16), lanczos)))


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


# Opening


def opened(source):
    return open_picture(Picture(source), Fetcher(policy="off"))


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def oriented(orientation, format):
    image = picture("RGB", (6, 4))
    exif = PIL.Image.Exif()
    exif[images.ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(image, format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(orientation, format):
    data = oriented(orientation, format)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert opened(data).size == ((6, 4) if orientation < 5 else (4, 6))
    assert np.array_equal(opened(data), expected)
    if format != "TIFF":  # PIL turns TIFF by itself
        assert (orientation == 1) == np.array_equal(opened(data), PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
@every_plan
def test_upright_frames_are_the_released_ones(orientation, plan, reference):
    data = oriented(orientation, "PNG")
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    expected = reference(plan)(upright, do_rescale=False, do_normalize=False)
    assert np.array_equal(np.stack(split(opened(data), plan)[0]).transpose(0, 3, 1, 2), expected)


def test_pil_pictures_are_turned_too_and_not_changed():
    image = PIL.Image.open(io.BytesIO(oriented(6, "JPEG")))
    assert opened(image).size == (4, 6)
    assert image.size == (6, 4)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_mean_nothing(orientation):
    assert opened(oriented(orientation, "PNG")).size == (6, 4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"garbage",
        b"II*\x00\xff\xff\xff\xff",
        b"II*\x00\x08\x00\x00\x00\x05\x00\x12\x01",
        b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x02\x00\x00\x00ab\x00\x00\x00\x00\x00\x00",  # text
    ],
)
def test_a_broken_tag_does_not_refuse_good_pixels(format, exif):
    assert opened(encoded(picture("RGB"), format, exif=b"Exif\x00\x00" + exif)).size == (37, 23)


def test_transparency_is_over_white():
    image = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert np.asarray(opened(image)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    for data in (encoded(image, "PNG"), encoded(image.convert("LA"), "PNG")):
        assert np.asarray(opened(data))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format):
    """transformers converts with PIL, which clips 0..65535 at 255: an almost white picture."""
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    expected = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    grey = np.asarray(opened(encoded(PIL.Image.fromarray(values), format)))
    assert np.array_equal(grey, np.repeat(expected[:, :, None], 3, axis=2))
    assert expected.tolist() == [[0, 0, 1, 1, 128, 255, 255]]


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_every_wide_grey_mode(mode):
    small = PIL.Image.fromarray(np.array([[0, 257, 65535]], np.int32))
    image = (
        small
        if mode == "I"
        else PIL.Image.frombytes(
            mode, (3, 1), np.array([0, 257, 65535], ">u2" if mode == "I;16B" else "<u2").tobytes()
        )
    )
    assert np.asarray(opened(image))[0, :, 0].tolist() == [0, 1, 255]


def test_16_bit_grey_is_only_a_grey_picture_to_the_frames(reference):
    """What transformers makes of the picture that we scale to 8 bits is what we make of the 16 bits."""
    grey = noise(23, 37, 1)
    wide = encoded(PIL.Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    expected = reference(TILES)(PIL.Image.fromarray(grey), do_rescale=False, do_normalize=False)
    assert np.array_equal(np.stack(split(opened(wide), TILES)[0]).transpose(0, 3, 1, 2), expected)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(opened(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((3, 5), "L"), ((3, 5, 1), "L"), ((3, 5, 3), "RGB"), ((3, 5, 4), "RGBA"), ((1, 1, 3), "RGB")],
)
def test_arrays(shape, mode):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = rgb(PIL.Image.fromarray(array.squeeze(2) if shape[2:] == (1,) else array))
    assert np.array_equal(opened(array), expected)
    assert np.array_equal(opened(array[::-1, ::-1]), np.asarray(expected)[::-1, ::-1])  # not contiguous


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((3, 5)), "float64 is ambiguous: scale it to 0..255 and give uint8"),
        (np.zeros((3, 5, 2), np.uint8), r"shape \(3, 5, 2\); give \(height, width\)"),
        (np.zeros((3,), np.uint8), r"shape \(3,\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((1, 3, 5, 3), np.uint8), "shape"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "more than 178,956,970 pixels"),
    ],
)
def test_arrays_that_are_no_pictures(array, complaint):
    with pytest.raises(BadPicture, match=complaint):
        opened(array)


def test_paths_and_names(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(picture("RGB"), "PNG"))
    assert np.array_equal(opened(path), opened(str(path)))
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(opened("photo.png"), opened(path))


def one_line(error):
    return "\n" not in str(error.value) and not re.search(r"0x[0-9a-f]{6,}", str(error.value))


@pytest.mark.parametrize("source", ["nothing.jpg", "", "a" * 5000, "a\0b"])
def test_no_such_file(source):
    with pytest.raises(BadPicture) as error:
        opened(source)
    assert one_line(error)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(BadPicture, match="is not a file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        b"II*\x00\x08\x00\x00\x00",
    ],
)
def test_what_is_no_picture(data, tmp_path):
    path = tmp_path / "notes.png"
    path.write_bytes(data)
    with pytest.raises(BadPicture, match=str(path)) as error:
        opened(path)
    assert one_line(error)
    with pytest.raises(BadPicture, match=f"a picture of {len(data)} bytes"):
        opened(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_named(format, tmp_path):
    data = encoded(picture("RGB", (200, 200)), format)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadPicture, match="half") as error:
        opened(path)
    assert one_line(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_garbled_files_open_or_are_refused(format):
    data = bytearray(encoded(picture("RGB", (40, 40)), format))
    rng = np.random.default_rng(0)
    for _ in range(150):
        spoilt = data.copy()
        for place in rng.integers(0, len(data), 4):
            spoilt[place] = rng.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(BadPicture):
                assert opened(bytes(spoilt)).mode == "RGB"


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PIXELS
    )


PIXELS = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_too_many_pixels(monkeypatch):
    for width, height in ((20_000, 20_000), (2**31 - 1, 1), (13_378, 13_378)):
        with pytest.raises(BadPicture, match=r"178,956,970.*make it smaller"):
            opened(png_header(width, height))
    with pytest.raises(BadPicture, match="broken"):  # one row less: within the limit, but without pixels
        opened(png_header(13_377, 1))
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    for source in (encoded(picture("RGB"), "PNG"), picture("RGB")):
        with pytest.raises(BadPicture, match="37 x 23 pixels; at most 100 are read"):
            opened(source)


def test_a_large_picture_within_the_limit_is_read_without_a_warning(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 37 * 23 - 1)
    assert opened(encoded(picture("RGB"), "PNG")).size == (37, 23)


def test_data_uris():
    data = encoded(picture("RGB"), "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert np.array_equal(opened(uri), opened(data))
    with pytest.raises(BadPicture, match="a data URI is not a picture"):
        opened("data:image/png;base64,aGVsbG8=")


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], 1.5, {"url": "x"}])
def test_what_cannot_be_a_picture(source):
    with pytest.raises(BadPicture, match="a picture cannot be a"):
        opened(source)


# Keys


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
