"""The size of a picture from its header: that of the picture once it is decoded and upright."""

import io
import struct
import zlib

import PIL.Image
import PIL.ImageFile
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin
import pytest

from idefics.errors import BadPicture
from idefics.processing.picture_size import read_upright_size
from processing.pictures_tiny import encode_picture, encode_with_orientation, open_trusted, random_picture

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def size_of(data):
    return read_upright_size(io.BytesIO(data), "the picture")


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    """Fails where pixels are decoded, once the expected size is known."""

    def forbid():
        for owner in (
            PIL.ImageFile.ImageFile,
            PIL.WebPImagePlugin.WebPImageFile,
            PIL.TiffImagePlugin.TiffImageFile,
        ):
            monkeypatch.setattr(owner, "load", lambda _: pytest.fail("pixels were decoded"))

    return forbid


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF", "PNG", "AVIF"])
def test_a_turned_picture_has_its_upright_size(format, orientation, nothing_is_decoded):
    data = encode_with_orientation(orientation, format)
    expected = open_trusted(data).size
    assert expected == ((4, 6) if orientation >= 5 else (6, 4))
    if format != "PNG":  # whose tag may follow the pixels
        nothing_is_decoded()
    assert size_of(data) == expected


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_an_ordinary_picture_is_not_decoded(format, nothing_is_decoded):
    data = encode_picture(random_picture("RGB", (37, 23)), format)
    nothing_is_decoded()
    assert size_of(data) == (37, 23)


def test_an_icon_has_the_size_that_is_read():
    data = encode_picture(random_picture("RGBA", (64, 64)), "ICO", sizes=[(16, 16), (48, 48)])
    assert size_of(data) == open_trusted(data).size == (48, 48)


@pytest.mark.parametrize("where", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", ["eXIf", "iTXt"])
def test_a_png_may_be_turned_by_any_metadata(kind, where):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = (
        exif.tobytes().removeprefix(b"Exif\0\0") if kind == "eXIf" else b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
    )
    data = encode_picture(random_picture("RGB", (6, 4)), "PNG")
    chunk = png_chunk(kind.encode(), content)
    at = data.index(b"IDAT" if where == "before the pixels" else b"IEND") - 4
    data = data[:at] + chunk + data[at:]
    assert size_of(data) == open_trusted(data).size == (4, 6)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_other_texts_turn_no_png(nothing_is_decoded):
    data = encode_picture(random_picture("RGB", (6, 4)), "PNG")
    at = data.index(b"IDAT") - 4
    data = data[:at] + png_chunk(b"tEXt", b"Comment\0tiff:Orientation") + data[at:]
    nothing_is_decoded()
    assert size_of(data) == (6, 4)
    assert size_of(data[:-30]) == (6, 4)  # cut off: the pixels are checked when they are read


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the picture is empty"),
        (b"no picture at all", "is not a picture that can be read"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 40, "is broken: it begins like PNG"),
    ],
)
def test_what_is_no_picture_is_refused(data, expected):
    with pytest.raises(BadPicture, match=expected):
        size_of(data)


def test_a_picture_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr("idefics.processing.picture_size.MAX_PIXELS", 100)
    with pytest.raises(BadPicture, match="has 37 x 23 pixels; at most 100 are read"):
        size_of(encode_picture(random_picture("RGB", (37, 23)), "PNG"))
