"""`open_picture`: every kind of file, array and Pillow image becomes upright RGB, or an error of one line."""

import base64
import contextlib
import io
import re
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from idefics.errors import BadPicture
from idefics.messages import Picture
from idefics.processing import image_processor
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.picture_files import decode_trusted
from idefics.processing.to_rgb import to_rgb
from processing.pictures_tiny import encode_picture, encode_with_orientation, open_trusted, random_picture


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_upright(orientation, format):
    data = encode_with_orientation(orientation, format)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert open_trusted(data).size == ((6, 4) if orientation < 5 else (4, 6))
    assert np.array_equal(open_trusted(data), expected)
    if format != "TIFF":  # PIL turns TIFF by itself
        assert (orientation == 1) == np.array_equal(open_trusted(data), PIL.Image.open(io.BytesIO(data)))


def test_pil_pictures_are_turned_too_and_not_changed():
    image = PIL.Image.open(io.BytesIO(encode_with_orientation(6, "JPEG")))
    assert open_trusted(image).size == (4, 6)
    assert image.size == (6, 4)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_mean_nothing(orientation):
    assert open_trusted(encode_with_orientation(orientation, "PNG")).size == (6, 4)


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
    assert open_trusted(encode_picture(random_picture("RGB"), format, exif=b"Exif\x00\x00" + exif)).size == (
        37,
        23,
    )


def test_transparency_is_over_white():
    image = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert np.asarray(open_trusted(image)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    for data in (encode_picture(image, "PNG"), encode_picture(image.convert("LA"), "PNG")):
        assert np.asarray(open_trusted(data))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format):
    """transformers converts with PIL, which clips 0..65535 at 255: an almost white picture."""
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    expected = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    grey = np.asarray(open_trusted(encode_picture(PIL.Image.fromarray(values), format)))
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
    assert np.asarray(open_trusted(image))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.filterwarnings("ignore::idefics.errors.PartialPictureWarning")
@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode_picture(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.asarray(open_trusted(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((3, 5), "L"), ((7, 5, 1), "L"), ((7, 5, 3), "RGB"), ((7, 5, 4), "RGBA"), ((1, 1, 3), "RGB")],
)
def test_arrays(shape, mode):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = to_rgb(PIL.Image.fromarray(array.squeeze(2) if shape[2:] == (1,) else array))
    assert np.array_equal(open_trusted(array), expected)
    assert np.array_equal(open_trusted(array[::-1, ::-1]), np.asarray(expected)[::-1, ::-1])  # not contiguous


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((7, 5, 2), np.uint8), r"shape \(7, 5, 2\); give \(height, width\)"),
        (np.zeros((3,), np.uint8), r"shape \(3,\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((1, 3, 5, 3), np.uint8), "shape"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "more than 178,956,970 pixels"),
    ],
)
def test_arrays_that_are_no_pictures(array, complaint):
    with pytest.raises(BadPicture, match=complaint):
        open_trusted(array)


def test_paths_and_names(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(encode_picture(random_picture("RGB"), "PNG"))
    assert np.array_equal(open_trusted(path), open_trusted(str(path)))
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(open_trusted("photo.png"), open_trusted(path))


def assert_one_line(error):
    return "\n" not in str(error.value) and not re.search(r"0x[0-9a-f]{6,}", str(error.value))


@pytest.mark.parametrize("source", ["nothing.jpg", "", "a" * 5000, "a\0b", "a\nb.jpg", "data:,", "~/x"])
def test_no_such_file(source):
    with pytest.raises(BadPicture) as error:
        open_trusted(source)
    assert assert_one_line(error)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(BadPicture, match="is not a file"):
        open_trusted(tmp_path)


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
        open_trusted(path)
    assert assert_one_line(error)
    with pytest.raises(
        BadPicture, match=f"a picture of {len(data):,} bytes" if data else "the picture is empty"
    ):
        open_trusted(data)


@pytest.mark.parametrize("format", ["PCX", "EPS"])
def test_only_common_formats_are_tried(format):
    """Pillow reads EPS by starting another program."""
    with pytest.raises(
        BadPicture, match=r"is not a picture that can be read|is EPS, which is not read: convert"
    ):
        open_trusted(encode_picture(random_picture("RGB"), format))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_named(format, tmp_path):
    data = encode_picture(random_picture("RGB", (200, 200)), format)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadPicture, match="half") as error:
        open_trusted(path)
    assert assert_one_line(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_garbled_files_open_or_are_refused(format):
    data = bytearray(encode_picture(random_picture("RGB", (40, 40)), format))
    rng = np.random.default_rng(0)
    for _ in range(150):
        spoilt = data.copy()
        for place in rng.integers(0, len(data), 4):
            spoilt[place] = rng.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(BadPicture):
                assert open_trusted(bytes(spoilt)).mode == "RGB"


def make_png_header(width, height):
    """A PNG whose header has a size and that holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + EMPTY_IDAT_CHUNK
    )


EMPTY_IDAT_CHUNK = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_too_many_pixels(monkeypatch):
    for width, height in ((20_000, 20_000), (2**31 - 1, 1), (13_378, 13_378)):
        with pytest.raises(BadPicture, match=r"178,956,970.*make it smaller"):
            open_trusted(make_png_header(width, height))
    with pytest.raises(BadPicture, match="broken"):  # one row less: within the limit, but without pixels
        open_trusted(make_png_header(13_377, 1))
    monkeypatch.setattr(image_processor, "MAX_PIXELS", 100)
    for source in (encode_picture(random_picture("RGB"), "PNG"), random_picture("RGB")):
        with pytest.raises(BadPicture, match="37 x 23 pixels; at most 100 are read"):
            open_trusted(source)


def test_a_large_picture_within_the_limit_is_read_without_a_warning(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 37 * 23 - 1)
    assert open_trusted(encode_picture(random_picture("RGB"), "PNG")).size == (37, 23)


def test_data_uris():
    data = encode_picture(random_picture("RGB"), "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert np.array_equal(open_trusted(uri), open_trusted(data))
    with pytest.raises(BadPicture, match="a data URI is not a picture"):
        open_trusted("data:image/png;base64,aGVsbG8=")


def test_base64_alone_is_a_picture_as_in_transformers(monkeypatch):
    data = encode_picture(random_picture("RGB"), "PNG")
    bare = base64.b64encode(data).decode()
    for text in (
        bare,
        base64.encodebytes(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
    ):
        assert np.array_equal(open_trusted(text), open_trusted(data))
    assert np.array_equal(open_trusted(f"  data:image/png;base64,{bare}\n"), open_trusted(data))
    with pytest.raises(BadPicture, match=r"is not a picture|is broken"):
        open_trusted(bare[: len(bare) // 2])
    with pytest.raises(BadPicture, match=r"a text of 5,000 characters is no path, no address and no base64"):
        open_trusted("A" * 5000)


def test_base64_alone_is_bounded_as_a_data_uri_is():
    bare = base64.b64encode(encode_picture(random_picture("RGB"), "TIFF")).decode()
    assert open_picture(Picture(bare), Fetcher(policy="any")).size == (37, 23)
    for fetcher in (Fetcher(policy="public"), Fetcher(policy="off", untrusted=True)):
        with pytest.raises(BadPicture, match="the base64 of a picture is TIFF, which is not read here"):
            open_picture(Picture(bare), fetcher)
    with pytest.raises(BadPicture, match="larger than 100 bytes"):
        open_picture(Picture(bare), Fetcher(policy="any", max_bytes=100))


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], 1.5, {"url": "x"}])
def test_what_cannot_be_a_picture(source):
    with pytest.raises(BadPicture, match="a picture cannot be of type"):
        open_trusted(source)


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_either_byte_order_are_the_same(order):
    wide = np.array([[0, 257], [1000, 65535]], "=u2")
    assert np.array_equal(open_trusted(wide.astype(f"{order}u2")), open_trusted(wide))
    with pytest.raises(BadPicture, match="holds no number above 200"):  # of eight bits or of sixteen
        open_trusted(np.full((2, 2), 200, f"{order}u2"))
    assert np.array_equal(
        open_trusted(np.full((2, 2), 0.5, f"{order}f4")), open_trusted(np.full((2, 2), 0.5, np.float32))
    )


def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_suffices():
    file = io.BytesIO()
    PIL.Image.new("RGB", (800, 500), "red").save(file, "JPEG")
    png = io.BytesIO()
    PIL.Image.new("RGB", (800, 500), "red").save(png, "PNG")

    def size(content, min_side):
        return decode_trusted(io.BytesIO(content.getvalue()), "x", 10**6, min_side).image.size

    sizes = [size(file, min_side) for min_side in (0, 62, 63, 126, 251, 900)]
    assert sizes == [(800, 500), (100, 63), (200, 125), (400, 250), (800, 500), (800, 500)]
    assert size(png, 62) == (800, 500)
