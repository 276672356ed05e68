"""Floats, 16-bit values, channels first, tensors and file objects are read in their one range, or refused."""

import io
import tempfile
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch

from idefics.errors import BadPicture
from idefics.messages import Picture, Video
from processing.pictures_tiny import encode_picture, open_trusted, random_picture, random_pixels

GREY_LEVELS = [0, 51, 128, 255]


def grey_values(source):
    return np.asarray(open_trusted(source))[:, :, 0].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_0_to_1_are_scaled(dtype):
    eight = np.array([GREY_LEVELS], np.uint8)
    assert grey_values((eight / 255).astype(dtype)) == [GREY_LEVELS]
    whole = random_pixels(20, 30, 3)
    assert np.array_equal(open_trusted((whole / 255).astype(dtype)), whole)
    assert grey_values(np.array([[-0.001, 1.001]], dtype)) == [[0, 255]]  # what resizing leaves


FLOATS = "(floating-point numbers from .* to .*|NaN or infinite numbers); 0 to 1 are read"


@pytest.mark.parametrize("wrong", [[0, 200.5], [-0.5, 1], [0, 1.5], [0, np.nan], [0, np.inf]])
def test_other_floats_are_refused(wrong):
    with pytest.raises(BadPicture, match=FLOATS):
        open_trusted(np.array([wrong]))
    image = PIL.Image.fromarray(np.array([wrong], np.float32))
    with pytest.raises(BadPicture, match=f"a PIL picture of mode F holds {FLOATS}"):
        open_trusted(image)


def test_a_float_tiff_of_0_to_1_is_not_black(tmp_path):
    path = tmp_path / "x.tiff"
    path.write_bytes(encode_picture(PIL.Image.fromarray(np.array([[0, 0.2, 0.5, 1]], np.float32)), "TIFF"))
    assert grey_values(path) == [GREY_LEVELS]
    path.write_bytes(encode_picture(PIL.Image.fromarray(np.array([[0, 4000]], np.float32)), "TIFF"))
    with pytest.raises(BadPicture, match=f"^{path} holds floating-point numbers from 0 to 4000"):
        open_trusted(path)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.int8, np.uint32, np.uint64])
def test_whole_numbers_are_0_to_255(dtype):
    top = min(255, np.iinfo(dtype).max)
    assert grey_values(np.array([[0, 7, top]], dtype)) == [[0, 7, top]]
    assert grey_values(np.zeros((2, 2), dtype)) == [[0, 0], [0, 0]]
    for wrong in ([-1, 5], [0, 256]):
        if np.iinfo(dtype).min <= min(wrong) and max(wrong) <= np.iinfo(dtype).max:
            with pytest.raises(BadPicture, match="0 to 255 are read"):
                open_trusted(np.array([wrong], dtype))
    with pytest.raises(BadPicture, match="0 and 1 alone"):
        open_trusted(np.array([[0, 1]], dtype))


def test_uint16_is_scaled_and_bool_is_black_and_white():
    assert grey_values(np.array([[0, 257, 32768, 65535]], np.uint16)) == [[0, 1, 128, 255]]
    colour = random_pixels(20, 30, 3)
    assert np.array_equal(open_trusted(colour.astype(np.uint16) * 257), colour)
    assert grey_values(np.array([[False, True]])) == [[0, 255]]


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_eight_bits_in_a_wider_type_are_not_read_as_black(mode):
    """`image.convert("I")` keeps 0 to 255, which as 16-bit values would be a black picture."""
    array = np.array([[0, 200]], np.int32 if mode == "I" else ">u2" if mode == "I;16B" else "<u2")
    image = PIL.Image.frombytes(mode, (2, 1), array.tobytes())
    for source in (image, encode_picture(image, "TIFF")):
        with pytest.raises(
            BadPicture, match="read as 0 to 65535 and holds no number above 200, which would be black"
        ):
            open_trusted(source)
    with pytest.raises(BadPicture, match="no number above 200"):
        open_trusted(np.array([[0, 200]], np.uint16))


def test_sixteen_bits_are_all_of_them_where_the_format_says_so():
    dark = PIL.Image.fromarray(np.array([[0, 200]], np.uint16))
    assert grey_values(encode_picture(dark, "PNG")) == [[0, 1]]
    assert grey_values(b"P5\n2 1\n65535\n" + np.array([0, 200], ">u2").tobytes()) == [[0, 1]]


def test_numbers_beyond_sixteen_bits_are_not_read_as_white():
    for wrong in ([0, 70_000], [-5, 1000]):
        with pytest.raises(BadPicture, match="0 to 65535 are read"):
            open_trusted(PIL.Image.fromarray(np.array([wrong], np.int32)))


@pytest.mark.parametrize("dtype", [complex, object, "U1"])
def test_what_is_no_number_is_refused(dtype):
    with pytest.raises(BadPicture, match="is no picture: give uint8"):
        open_trusted(np.zeros((2, 2), dtype))


def with_transparent_palette(image):
    """Pillow itself drops the transparency of images that it converts to PA."""
    colours = image.convert("RGB").quantize(2)
    colours.putalpha(image.getchannel("A"))
    assert colours.mode == "PA"
    return colours


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa", "RGBA", "P"])
def test_transparency_of_every_mode_is_over_white(mode):
    image = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (40, 40, 40, 255))
    if mode == "P":
        image = PIL.Image.new("P", (2, 1), 0)
        image.putpalette([200, 0, 0, 40, 40, 40])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = 0
    elif mode in ("La", "PA", "LA"):
        image = image.convert("LA") if mode != "PA" else with_transparent_palette(image)
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    assert np.asarray(open_trusted(image)).tolist() == [[[255, 255, 255], [40, 40, 40]]]


def test_a_palette_may_hold_the_transparency():
    """The palette of a quantized RGBA image has alpha, which no other attribute shows."""
    image = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (40, 40, 40, 255))
    few = image.quantize(2)
    assert few.palette.mode == "RGBA" and "transparency" not in few.info
    assert np.asarray(open_trusted(few)).tolist() == [[[255, 255, 255], [40, 40, 40]]]


def test_a_transparent_grey_of_sixteen_bits_is_over_white():
    image = PIL.Image.fromarray(np.array([[7, 65535, 0]], np.uint16))
    assert grey_values(encode_picture(image, "PNG", transparency=7)) == [[255, 255, 0]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_first(channels):
    last = random_pixels(20, 30, channels).reshape(20, 30, channels)
    first = last.transpose(2, 0, 1)
    assert np.array_equal(open_trusted(first), open_trusted(last))
    assert np.array_equal(open_trusted(torch.from_numpy(first.copy())), open_trusted(last))
    assert np.array_equal(open_trusted(torch.from_numpy(last)), open_trusted(last))


@pytest.mark.parametrize("shape", [(3, 20, 3), (4, 20, 3), (3, 20, 4), (3, 20, 1), (1, 20, 1), (3, 3, 3)])
def test_what_fits_both_orders_has_its_channels_last_in_arrays_and_first_in_tensors(shape):
    array = random_pixels(shape[0], shape[1], shape[2]).reshape(shape)
    assert np.array_equal(
        open_trusted(array), open_trusted(PIL.Image.fromarray(array[:, :, 0] if shape[2] == 1 else array))
    )
    assert np.array_equal(open_trusted(torch.from_numpy(array)), open_trusted(array.transpose(1, 2, 0)))


def test_a_batch_of_arrays_is_not_one_picture():
    with pytest.raises(BadPicture, match="several pictures are a list"):
        open_trusted(np.zeros((1, 3, 20, 30), np.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_floats(dtype):
    eight = random_pixels(20, 30, 3)
    tensor = torch.from_numpy(eight).permute(2, 0, 1).to(dtype) / 255
    found = np.asarray(open_trusted(tensor.requires_grad_())).astype(int)
    most = 1 if dtype == torch.bfloat16 else 0  # eight bits of a mantissa
    assert np.abs(found - eight).max() <= most


def test_file_objects_are_read_from_their_beginning(tmp_path):
    data = encode_picture(random_picture("RGB"), "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    written = io.BytesIO()
    random_picture("RGB").save(written, "PNG")  # and is at its end
    assert np.array_equal(open_trusted(written), open_trusted(data))
    with path.open("rb") as file:
        held = Picture(file)
    assert held.source == data  # when the file has long been closed
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(path, "photo.png")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive, archive.open("photo.png") as member:
        assert np.array_equal(open_trusted(member), open_trusted(data))
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        assert np.array_equal(open_trusted(file), open_trusted(data))
    for buffer in (bytearray(data), memoryview(data)):
        assert np.array_equal(open_trusted(buffer), open_trusted(data))
    assert Video(io.BytesIO(b"abc")).source == b"abc"


def test_file_objects_that_give_no_bytes(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode_picture(random_picture("RGB"), "PNG"))
    with path.open(encoding="utf-8") as text, pytest.raises(BadPicture, match="open it with mode 'rb'"):
        Picture(text)
    with pytest.raises(BadPicture, match="open it with mode 'rb'"):
        Picture(io.StringIO("x"))
    with path.open("rb") as closed:
        pass
    with pytest.raises(BadPicture, match="closed file"):
        Picture(closed)

    class Upload:
        async def read(self, size=-1):
            return b""

    with pytest.raises(BadPicture, match=r"await file.read\(\)"):
        Picture(Upload())


def test_frames_of_a_video_may_be_a_tensor():
    frames = torch.zeros((2, 3, 20, 30), dtype=torch.uint8)
    assert isinstance(Video(frames).source, np.ndarray)
