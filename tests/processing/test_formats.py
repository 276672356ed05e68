"""The table of formats: which are read, by which suffixes, and the messages about the others."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from idefics.errors import BadPicture
from idefics.formats import (
    IMAGE_FORMATS,
    UNREADABLE_IMAGE_FORMATS,
    UNTRUSTED_IMAGE_FORMATS,
    VIDEO_SUFFIXES,
    detect_image_format,
    image_format_by_suffix,
)
from idefics.processing import picture_files
from idefics.processing.picture_files import readable_formats
from processing.pictures_tiny import encode_picture, open_trusted, random_picture

BY_TITLE = {one.title: one for one in (*IMAGE_FORMATS, *UNREADABLE_IMAGE_FORMATS)}
PILLOW_FORMAT_BY_TITLE = {
    "AVIF": "AVIF",
    "JPEG 2000": "JPEG2000",
    "TIFF": "TIFF",
    "ICO": "ICO",
    "PPM": "PPM",
    "WebP": "WEBP",
}
PILLOW_FORMAT_BY_TITLE |= {"JPEG": "JPEG", "PNG": "PNG", "GIF": "GIF", "BMP": "BMP"}


def encode_heic(size=(37, 23), orientation=1):
    """A HEIC file as a phone writes it."""
    import pillow_heif

    image, exif = PIL.Image.new("RGB", size, "red"), PIL.Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, exif=exif.tobytes())
    return file.getvalue()


@pytest.fixture
def without_heif_extra(monkeypatch):
    """An installation without pillow_heif."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(picture_files, "find_spec", lambda name: None)
    readable_formats.cache_clear()
    yield
    readable_formats.cache_clear()


@pytest.mark.parametrize("title", PILLOW_FORMAT_BY_TITLE)
def test_every_format_is_recognised_and_read_under_all_its_names_and_none(title, tmp_path):
    data = encode_picture(random_picture("RGB", (64, 64)), PILLOW_FORMAT_BY_TITLE[title])
    assert detect_image_format(data[:256]) is BY_TITLE[title]
    for suffix in (*BY_TITLE[title].suffixes, "", ".tmp"):
        path = tmp_path / f"photo{suffix}"
        path.write_bytes(data)
        assert open_trusted(path).size == (64, 64)


def test_heic_is_read_upright(tmp_path):
    pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(encode_heic())
    assert open_trusted(path).size == (37, 23)
    assert open_trusted(encode_heic(orientation=6)).size == (23, 37)
    red, green, blue = np.asarray(open_trusted(path))[0, 0]
    assert red > 240 > 20 > max(green, blue)


def test_reading_heic_changes_nothing_for_other_users_of_pillow():
    pytest.importorskip("pillow_heif")
    data = encode_heic()
    open_trusted(data)
    with pytest.raises(PIL.UnidentifiedImageError):
        PIL.Image.open(io.BytesIO(data))


def test_heic_without_the_extra_says_what_to_do(tmp_path, without_heif_extra):
    path = tmp_path / "x.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400))
    with pytest.raises(BadPicture) as error:
        open_trusted(path)
    assert str(error.value) == f"{path} is HEIC: pip install 'idefics[heif]', or convert it to JPEG"
    assert "HEIC" not in [one.title for one in readable_formats()]


def test_a_broken_heic_is_refused():
    pytest.importorskip("pillow_heif")
    data = encode_heic()
    for broken in (data[:200], data[:-100], data[:40] + bytes(len(data))):
        with pytest.raises(BadPicture, match="a picture of"):
            open_trusted(broken)


def test_a_large_heic_is_refused_before_it_is_decoded(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    data = encode_heic((64, 48))
    monkeypatch.setattr("idefics.processing.image_processor.MAX_PIXELS", 1000)
    monkeypatch.setattr(heif.HeifImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BadPicture, match="64 x 48 pixels; at most 1,000"):
        open_trusted(data)


@pytest.mark.parametrize(
    ("data", "title"),
    [
        (b"8BPS\0\1", "PSD"),
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        (b"\xff\x0a\0", "JPEG XL"),
        (b"FUJIFILMCCD-RAW 0201", "camera RAW"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera RAW"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera RAW"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", None),
        (b"BMW makes cars", None),
        (b"P6 is a title", "PPM"),
        (b"hello", None),
        (b"", None),
    ],
)
def test_content_is_recognised(data, title):
    found = detect_image_format(data)
    assert (found and found.title) == title


@pytest.mark.parametrize("suffix", [".psd", ".pdf", ".svg", ".jxl"])
def test_other_formats_are_named(suffix, tmp_path):
    content = {".psd": b"8BPS\0\1", ".pdf": b"%PDF-1.7", ".svg": b"<svg>", ".jxl": b"\xff\x0a"}[suffix]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    title = image_format_by_suffix(path.name).title
    with pytest.raises(BadPicture) as error:
        open_trusted(path)
    assert str(error.value) == f"{path} is {title}, which is not read: convert it to JPEG"


def test_the_preview_of_a_camera_raw_file_is_not_taken_for_the_photo(tmp_path):
    """RAW files begin as TIFF does; Pillow would read a preview of 160 x 120."""
    plain = encode_picture(random_picture("RGB"), "TIFF")
    (tmp_path / "x.NEF").write_bytes(plain)
    with pytest.raises(BadPicture, match=r"x.NEF is camera RAW, which is not read: convert it to JPEG"):
        open_trusted(tmp_path / "x.NEF")
    for tags in ({254: 1}, {50706: b"\1\4\0\0"}):
        info = PIL.TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            info[tag] = value
        with pytest.raises(BadPicture, match="is a TIFF that begins with a preview, as camera RAW files do"):
            open_trusted(encode_picture(random_picture("RGB"), "TIFF", tiffinfo=info))


def test_what_is_not_known_lists_what_is():
    with pytest.raises(BadPicture) as error:
        open_trusted(b"hello")
    for one in readable_formats():
        assert one.title in str(error.value)


def test_a_pillow_without_avif_says_so(monkeypatch):
    monkeypatch.setattr(PIL.features, "check", lambda feature: feature != "avif")
    readable_formats.cache_clear()
    try:
        with pytest.raises(
            BadPicture, match="is AVIF, which is not read by this installation of Pillow: convert"
        ):
            open_trusted(encode_picture(random_picture("RGB"), "AVIF"))
    finally:
        readable_formats.cache_clear()


@pytest.mark.parametrize("empty", ["zero.jpg", "zero"])
def test_an_empty_file_is_called_empty(empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(empty).touch()
    with pytest.raises(BadPicture, match=re.escape(f"{empty} is empty (0 bytes)")):
        open_trusted(empty)


def test_no_suffix_stands_for_two_formats():
    suffixes = [suffix for one in BY_TITLE.values() for suffix in one.suffixes] + list(VIDEO_SUFFIXES)
    assert len(suffixes) == len(set(suffixes))
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)


def test_untrusted_senders_have_five_formats():
    """The work of each format's decoder is bounded by the file's header: see docs/design.md."""
    assert [one.title for one in UNTRUSTED_IMAGE_FORMATS] == ["JPEG", "PNG", "WebP", "GIF", "BMP"]


@pytest.mark.parametrize(
    "title", [title for title in PILLOW_FORMAT_BY_TITLE if title != "ICO"]
)  # Pillow decodes ICO to open it
def test_the_pixels_of_every_format_are_counted_before_one_is_decoded(title, monkeypatch):
    data = encode_picture(random_picture("RGB", (64, 64)), PILLOW_FORMAT_BY_TITLE[title])
    decoder = type(PIL.Image.open(io.BytesIO(data)))
    monkeypatch.setattr("idefics.processing.image_processor.MAX_PIXELS", 1000)
    monkeypatch.setattr(decoder, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BadPicture, match=r"64 x 64 pixels; at most 1,000 are read"):
        open_trusted(data)
