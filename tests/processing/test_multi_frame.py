"""Of a file with several pages, frames or pictures one is read, and a note names what was left out."""

import io
import warnings

import numpy as np
import PIL.Image
import pytest

import idefics
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess, open_picture
from processing.pictures_tiny import UNSPLIT_CONFIG

COLORS = ("red", "lime", "blue")
TRUSTED_FETCHER, UNTRUSTED_FETCHER = Fetcher(policy="off"), Fetcher(policy="off", untrusted=True)
SAVE_HINT = "save the others as files of their own to ask about them"


def make_pages(size=(24, 16)):
    return [PIL.Image.new("RGB", size, color) for color in COLORS]


def encode_pages(format, images=None, **options):
    file, images = io.BytesIO(), images or make_pages()
    images[0].save(file, format, save_all=True, append_images=images[1:], **options)
    return file.getvalue()


def encode_heic(main):
    heif = pytest.importorskip("pillow_heif")
    made, file = heif.HeifFile(), io.BytesIO()
    for image in make_pages((64, 64)):
        made.add_from_pillow(image)
    made.save(file, primary_index=main)
    return file.getvalue()


def picture_note(data, fetcher=TRUSTED_FETCHER):
    """The note of a picture, which a trusted caller also gets as a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        note = open_and_preprocess(Picture(data), UNSPLIT_CONFIG, fetcher, idefics.ImageDetail()).note
    said = [str(one.message) for one in caught if one.category is idefics.PartialPictureWarning]
    assert said == ([note] if note and not fetcher.untrusted else [])
    return note


@pytest.mark.parametrize(
    ("format", "noun"),
    [(name, "frames") for name in ("GIF", "WEBP", "PNG", "AVIF")] + [("TIFF", "pages"), ("MPO", "pictures")],
)
def test_frames_that_are_left_out_are_noted(format, noun, tmp_path):
    data = encode_pages(format)
    assert (
        picture_note(data)
        == f"a picture of {len(data):,} bytes has 3 {noun}, and only the first was read: {SAVE_HINT}"
    )
    path = tmp_path / "several"
    path.write_bytes(data)
    assert picture_note(path).startswith(f"{path} has 3 {noun}, and only the first was read")
    with pytest.warns(idefics.PartialPictureWarning, match=f"has 3 {noun}"):
        image = open_picture(Picture(path), TRUSTED_FETCHER)
    assert np.abs(np.asarray(image, int) - (255, 0, 0)).max() < 8  # the first, whole and as decoded


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_untrusted_sender_gets_the_note_and_the_owner_no_warning(format):
    assert "has 3 frames, and only the first was read" in picture_note(
        encode_pages(format), UNTRUSTED_FETCHER
    )


@pytest.mark.parametrize("main", [0, 1])
def test_of_heic_the_main_picture_is_read(main):
    data = encode_heic(main)
    assert "has 3 pictures, and only the main one was read" in picture_note(data)
    with pytest.warns(idefics.PartialPictureWarning):
        image = open_picture(Picture(data), TRUSTED_FETCHER)
    assert np.asarray(image)[32, 32].argmax() == main


@pytest.mark.parametrize("format", ["TIFF", "GIF", "WEBP", "PNG", "AVIF", "JPEG", "BMP", "ICO", "PPM"])
def test_one_picture_has_no_note(format):
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), "red").save(file, format)
    assert not picture_note(file.getvalue())


def test_copies_and_masks_of_a_page_are_no_pages():
    small = PIL.Image.new("RGB", (6, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    assert not picture_note(encode_pages("TIFF", [make_pages()[0], small]))
    mask = PIL.Image.new("1", (24, 16))
    mask.encoderinfo = {"tiffinfo": {254: 4}}
    assert "has 2 pages" in picture_note(encode_pages("TIFF", [make_pages()[0], mask, make_pages()[1]]))


def test_previews_and_maps_in_a_jpeg_are_no_pictures():
    first, second, _ = make_pages()
    assert not picture_note(encode_pages("MPO", [first, second.resize((12, 8))]))


def test_a_picture_of_several_is_whole_whatever_follows():
    """Counting the frames seeks in the open file and must not change the returned pixels."""
    first = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    data = encode_pages("TIFF", [first, *make_pages()])
    with pytest.warns(idefics.PartialPictureWarning):
        assert np.array_equal(open_picture(Picture(data), TRUSTED_FETCHER), first)


def test_frames_that_cannot_be_counted():
    data = encode_pages("TIFF")
    with pytest.warns(idefics.PartialPictureWarning, match="has several pages"):
        open_picture(Picture(data[: len(data) // 2 + 200]), TRUSTED_FETCHER)


def test_more_frames_than_an_untrusted_sender_may_make_us_count():
    colors = [PIL.Image.new("L", (2, 2), shade % 256) for shade in range(6000)]
    note = picture_note(encode_pages("GIF", colors), UNTRUSTED_FETCHER)
    assert "has several frames, and only the first was read" in note


def test_pillow_images_keep_their_frame():
    image = PIL.Image.open(io.BytesIO(encode_pages("TIFF")))
    image.seek(1)
    assert open_picture(Picture(image), TRUSTED_FETCHER).getpixel((0, 0)) == (0, 255, 0)
