"""Image processors: the reference's pixels, its settings and defaults, and pictures of every kind."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch

from compat.processors_tiny import IDEFICS2_SETTINGS, IDEFICS3_SETTINGS, IDEFICS_SETTINGS, SMALL, TALL, WIDE
from idefics.compat.image_processing_idefics import IdeficsImageProcessor
from idefics.compat.image_processing_inline import Idefics2ImageProcessor, Idefics3ImageProcessor
from idefics.errors import BadPicture, BadPrompt, BadSetting, UnsupportedModel
from processing.pictures_tiny import EXIF_ORIENTATION_TAG

IMAGE_PROCESSOR_BY_FAMILY = {
    "idefics": IdeficsImageProcessor(**IDEFICS_SETTINGS),
    "idefics2": Idefics2ImageProcessor(**IDEFICS2_SETTINGS),
    "idefics3": Idefics3ImageProcessor(**IDEFICS3_SETTINGS),
}
each = pytest.mark.parametrize("family", IMAGE_PROCESSOR_BY_FAMILY)
each_inline_family = pytest.mark.parametrize("family", ["idefics2", "idefics3"])
PLAIN = {"do_rescale": False, "do_normalize": False}


def is_close(ours, theirs):
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": 0.5, "image_std": [0.1, 0.2, 0.3]},
        {"do_rescale": True, "rescale_factor": 0.5},
        {"resample": PIL.Image.Resampling.BILINEAR},
    ],
)
def test_squares_are_the_references(reference, options):
    theirs = reference["idefics"].image_processor
    expected = dict(options)
    if "image_mean" in options:
        expected["image_mean"] = [0.5] * 3  # the reference accepts a number too, but not together with a list
    is_close(
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess([WIDE, TALL], **options),
        theirs.preprocess([WIDE, TALL], return_tensors="pt", **expected),
    )


@each_inline_family
@pytest.mark.parametrize("images", [WIDE, [WIDE, SMALL], [[WIDE], [SMALL, TALL]]])
@pytest.mark.parametrize(
    "options", [{}, {"do_image_splitting": False}, {"rescale_factor": 0.5}, {"resample": 0}]
)
def test_frames_are_the_references(reference, family, images, options):
    ours = IMAGE_PROCESSOR_BY_FAMILY[family](images, return_tensors="pt", **options)
    theirs = reference[family].image_processor(images, return_tensors="pt", **options)
    assert set(ours) == set(theirs)
    is_close(ours.pixel_values, theirs["pixel_values"])
    is_close(ours.pixel_attention_mask, theirs["pixel_attention_mask"])


def test_the_size_of_one_call(reference):
    """5.23 leaves the `image_size` of a call aside."""
    theirs = type(reference["idefics"].image_processor)(image_size=12)
    is_close(
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(WIDE, image_size=12),
        theirs.preprocess(WIDE, return_tensors="pt"),
    )


def test_rows_and_columns_on_request(reference):
    ours = IMAGE_PROCESSOR_BY_FAMILY["idefics3"]([[WIDE], [SMALL]], return_row_col_info=True)
    theirs = reference["idefics3"].image_processor([[WIDE], [SMALL]], return_row_col_info=True)
    assert (ours.rows, ours.cols) == (theirs["rows"], theirs["cols"])
    assert isinstance(ours.pixel_values, np.ndarray)


def test_defaults_are_the_references(reference):
    for family, ours in (
        ("idefics", IdeficsImageProcessor()),
        ("idefics2", Idefics2ImageProcessor()),
        ("idefics3", Idefics3ImageProcessor()),
    ):
        theirs = type(reference[family].image_processor)().to_dict()
        for name, value in ours.to_dict().items():
            if name not in {"image_processor_type", "image_num_channels"}:
                assert np.all(np.asarray(value) == np.asarray(theirs[name])), name
    names = list(inspect.signature(IdeficsImageProcessor).parameters)
    assert names[:4] == ["image_size", "image_mean", "image_std", "image_num_channels"]


def test_raw_values_may_be_kept():
    pixels = IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(SMALL, image_size=5, **PLAIN)
    assert torch.equal(pixels[0].to(torch.uint8), torch.from_numpy(np.array(SMALL)).permute(2, 0, 1))


def test_a_size_may_be_a_dict():
    assert IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(
        SMALL, image_size={"height": 6, "width": 6}
    ).shape == (1, 3, 6, 6)
    with pytest.raises(BadSetting, match="height and width are alike"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(SMALL, image_size={"height": 6, "width": 7})


@each
def test_pictures_of_every_kind(family, tmp_path, picture_server_url):
    WIDE.save(tmp_path / "wide.png")
    array = np.array(WIDE)
    turned = WIDE.copy()
    turned.getexif()[EXIF_ORIENTATION_TAG] = 6  # objects are taken as they are
    kinds = [
        turned,
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array),
        tmp_path / "wide.png",
        str(tmp_path / "wide.png"),
        (tmp_path / "wide.png").read_bytes(),
        f"{picture_server_url}/wide.png",
        f"{picture_server_url}/turned.png",  # addresses are turned upright
    ]
    expected = IMAGE_PROCESSOR_BY_FAMILY[family].preprocess_picture(WIDE)
    for kind in kinds:
        assert (
            IMAGE_PROCESSOR_BY_FAMILY[family].preprocess_picture(kind).content_hash == expected.content_hash
        )


def test_addresses_become_pictures(picture_server_url, tmp_path):
    fetch = IMAGE_PROCESSOR_BY_FAMILY["idefics"].fetch_images
    one = fetch(f"{picture_server_url}/turned.png")
    assert isinstance(one, PIL.Image.Image)
    assert np.array_equal(np.array(one), np.array(WIDE))
    nest = fetch([[f"{picture_server_url}/wide.png"], [WIDE, f"{picture_server_url}/wide.png"]])
    assert [len(group) for group in nest] == [1, 2]
    assert nest[1][0] is WIDE
    with pytest.raises(BadPicture, match="404"):
        fetch([f"{picture_server_url}/none.png"])


def test_the_environment_may_forbid_addresses(monkeypatch, picture_server_url):
    monkeypatch.setenv("IDEFICS_REMOTE_IMAGES", "off")
    with pytest.raises(BadPicture, match="may not be fetched"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].fetch_images(f"{picture_server_url}/wide.png")


@each
def test_unknown_settings_are_a_type_error(family):
    with pytest.raises(TypeError, match="do_splitting"):
        IMAGE_PROCESSOR_BY_FAMILY[family].preprocess(WIDE, do_splitting=True)
    with pytest.raises(TypeError, match="do_splitting"):
        type(IMAGE_PROCESSOR_BY_FAMILY[family])(do_splitting=True)


def test_mistakes_are_told():
    with pytest.raises(BadSetting, match="image_num_channels is 4"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(WIDE, image_num_channels=4)
    with pytest.raises(BadSetting, match="one for each of 3 channels"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(WIDE, image_mean=[0.5, 0.5])
    with pytest.raises(UnsupportedModel, match="resample is 9"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(WIDE, resample=9)
    with pytest.raises(BadSetting, match=r'size is .*; give .*"shortest_edge"'):
        IMAGE_PROCESSOR_BY_FAMILY["idefics2"](WIDE, size={"longest_edge": 20})
    with pytest.raises(BadSetting, match="max_image_size is 8"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics3"](WIDE, max_image_size=8)
    with pytest.raises(BadPrompt, match="number 2"):
        IMAGE_PROCESSOR_BY_FAMILY["idefics3"]([[WIDE], WIDE])


@each
def test_what_is_saved_is_read_again(family, tmp_path):
    ours = IMAGE_PROCESSOR_BY_FAMILY[family].with_settings(image_mean=[0.1, 0.2, 0.3])
    ours.save_pretrained(tmp_path)
    assert type(ours).from_pretrained(tmp_path) == ours
    assert type(ours).from_pretrained(tmp_path, rescale_factor=0.5) == ours.with_settings(rescale_factor=0.5)
    with pytest.raises(TypeError, match="rescale"):
        type(ours).from_pretrained(tmp_path, rescale=0.5)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_std": [1, 1, 1], "feature_extractor_type": "X"}'
    )
    assert type(ours).from_pretrained(tmp_path).image_std == [1, 1, 1]


@each
def test_settings_in_a_file_make_the_same_config(family):
    ours = IMAGE_PROCESSOR_BY_FAMILY[family]
    assert type(ours).from_dict(ours.to_dict()).to_processor_config(3) == ours.to_processor_config(3)
