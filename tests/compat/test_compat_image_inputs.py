"""Image processors: arrays and tensors of every kind, settings that the reference has, and calls of the guides."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from compat.processors_tiny import (
    IDEFICS2_SETTINGS,
    IDEFICS3_SETTINGS,
    IDEFICS_SETTINGS,
    SMALL,
    TALL,
    WIDE,
    random_photo,
)
from idefics.compat import AutoImageProcessor, SmolVLMImageProcessor
from idefics.compat.image_processing_idefics import IdeficsImageProcessor
from idefics.compat.image_processing_inline import Idefics2ImageProcessor, Idefics3ImageProcessor
from idefics.errors import BadPicture, BadSetting

IMAGE_PROCESSOR_BY_FAMILY = {
    "idefics": IdeficsImageProcessor(**IDEFICS_SETTINGS),
    "idefics2": Idefics2ImageProcessor(**IDEFICS2_SETTINGS),
    "idefics3": Idefics3ImageProcessor(**IDEFICS3_SETTINGS),
}
each = pytest.mark.parametrize("family", IMAGE_PROCESSOR_BY_FAMILY)
each_inline_family = pytest.mark.parametrize("family", ["idefics2", "idefics3"])
TWO_PHOTOS = np.stack([np.asarray(random_photo(12, 10, seed)) for seed in (3, 4)])  # (2, 10, 12, 3)


def our_pixels(family, images, **options):
    made = IMAGE_PROCESSOR_BY_FAMILY[family](images, return_tensors="pt", **options)
    return made if family == "idefics" else made["pixel_values"]


def reference_pixels(reference, family, images, **options):
    made = reference[family].image_processor(images, return_tensors="pt", **options)
    return made if family == "idefics" else made["pixel_values"]


ARRAYS = {
    "uint8": TWO_PHOTOS[0],
    "int64": TWO_PHOTOS[0].astype(np.int64),
    "int64 first": torch.from_numpy(TWO_PHOTOS[0].astype(np.int64)).permute(2, 0, 1),
    "float of 0 to 255": TWO_PHOTOS[0].astype(np.float32),
    "4-D": TWO_PHOTOS,
    "4-D tensor": torch.from_numpy(TWO_PHOTOS).permute(0, 3, 1, 2),
}


@each
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_the_references(reference, family, kind):
    ours = our_pixels(family, ARRAYS[kind])
    torch.testing.assert_close(ours, reference_pixels(reference, family, ARRAYS[kind]), rtol=0, atol=1e-6)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_0_to_1_are_not_rescaled_again(reference, family, dtype):
    tensor = (torch.from_numpy(TWO_PHOTOS[0]).permute(2, 0, 1) / 255).to(dtype)
    exact = {torch.bfloat16: 3, torch.float16: 1}.get(
        dtype, 0
    )  # what the type itself loses, in steps of 1/255
    ours = our_pixels(family, tensor, do_rescale=False, do_normalize=False)
    whole = our_pixels(family, TWO_PHOTOS[0], do_normalize=False)
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-6 + exact / 255)
    if dtype != torch.bfloat16:  # NumPy has none, and the reference refuses it
        theirs = reference_pixels(reference, family, tensor.numpy(), do_rescale=False, do_normalize=False)
        torch.testing.assert_close(
            ours, theirs.float(), rtol=0, atol=4 / 255
        )  # it drops fractions at each step


@each
def test_floats_of_0_to_1_are_not_read_as_black(family):
    tensor = torch.from_numpy(TWO_PHOTOS[0]).permute(2, 0, 1) / 255
    with pytest.raises(BadPicture, match="do_rescale=False"):
        our_pixels(family, tensor)
    assert our_pixels(family, torch.zeros(3, 10, 12)).equal(our_pixels(family, torch.zeros(3, 10, 12).byte()))


@each
def test_whole_numbers_stay_on_their_scale(reference, family):
    options = {"do_rescale": False, "do_normalize": False}
    ours, theirs = (
        our_pixels(family, TWO_PHOTOS[0], **options),
        reference_pixels(reference, family, TWO_PHOTOS[0], **options),
    )
    assert ours.max() > 100
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-6)


@each_inline_family
@pytest.mark.parametrize(
    "options",
    [
        {"do_resize": False},
        {"do_resize": False, "do_image_splitting": False},
        {"size": {"height": 16, "width": 16}},
        {"size": {"height": 16, "width": 16}, "do_image_splitting": False},
    ],
)
def test_sizes_are_the_references(reference, family, options):
    images = [[WIDE], [TALL, SMALL]]
    torch.testing.assert_close(
        our_pixels(family, images, **options),
        reference_pixels(reference, family, images, **options),
        rtol=0,
        atol=1e-6,
    )


def test_a_size_of_other_aspect(reference):
    options = {"size": {"height": 24, "width": 9}}
    torch.testing.assert_close(
        our_pixels("idefics3", WIDE, **options),
        reference_pixels(reference, "idefics3", WIDE, **options),
        rtol=0,
        atol=1e-6,
    )
    with pytest.raises(BadSetting, match="height and width must be alike"):
        our_pixels("idefics2", WIDE, **options)


def test_squares_of_another_size(reference):
    size = {"height": 6, "width": 6}
    torch.testing.assert_close(
        our_pixels("idefics", WIDE, size=size),
        reference_pixels(reference, "idefics", WIDE, size=size),
        rtol=0,
        atol=1e-6,
    )
    assert IdeficsImageProcessor(size=size).image_size == 6
    square = random_photo(8, 8)
    assert our_pixels("idefics", square, do_resize=False).equal(our_pixels("idefics", square))
    with pytest.raises(BadSetting, match="a picture has 32 x 16 pixels; the models read 8 x 8"):
        our_pixels("idefics", WIDE, do_resize=False)


@each_inline_family
def test_frames_without_padding(reference, family):
    whole = {"do_image_splitting": False}
    ours = IMAGE_PROCESSOR_BY_FAMILY[family]([[WIDE], [WIDE]], return_tensors="pt", do_pad=False, **whole)
    assert set(ours) == {"pixel_values"}
    theirs = reference_pixels(reference, family, [[WIDE], [WIDE]], **whole)
    torch.testing.assert_close(ours["pixel_values"], theirs, rtol=0, atol=1e-6)
    with pytest.raises(BadSetting, match="do_pad is False, and pictures differ"):
        IMAGE_PROCESSOR_BY_FAMILY[family]([[WIDE], [WIDE, SMALL]], return_tensors="pt", do_pad=False, **whole)
    lists = IMAGE_PROCESSOR_BY_FAMILY[family]([[WIDE], [WIDE, SMALL]], do_pad=False, **whole)["pixel_values"]
    assert [len(frames) for frames in lists] == [1, 2]


@each
def test_where_the_channels_are_can_be_said(family):
    array = np.random.default_rng(5).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    with pytest.raises(BadPicture, match="ambiguous"):
        our_pixels(family, array)
    last, first = (our_pixels(family, array, input_data_format=f"channels_{at}") for at in ("last", "first"))
    assert last.equal(our_pixels(family, PIL.Image.fromarray(array)))
    assert first.equal(our_pixels(family, PIL.Image.fromarray(array.transpose(1, 2, 0))))
    with pytest.raises(BadSetting, match="input_data_format is 'middle'"):
        our_pixels(family, array, input_data_format="middle")


@each
def test_keywords_that_change_nothing(family):
    keywords = {
        "return_tensors": "pt",
        "padding_value": 1.0,
        "data_format": "channels_first",
        "device": "cpu",
    }
    kind, settings = type(IMAGE_PROCESSOR_BY_FAMILY[family]), IMAGE_PROCESSOR_BY_FAMILY[family].to_dict()
    assert kind(**keywords).to_dict() == kind().to_dict()
    assert kind.from_dict(settings, **keywords).to_dict() == settings
    assert our_pixels(family, WIDE, data_format="channels_first", disable_grouping=True).equal(
        our_pixels(family, WIDE)
    )
    with pytest.raises(BadSetting, match="data_format is 'channels_last'"):
        our_pixels(family, WIDE, data_format="channels_last")
    with pytest.raises(TypeError, match="do_resise"):
        kind(do_resise=False)


@each
def test_settings_as_json(family, tmp_path):
    ours, kind = IMAGE_PROCESSOR_BY_FAMILY[family], type(IMAGE_PROCESSOR_BY_FAMILY[family])
    assert json.loads(ours.to_json_string()) == ours.to_dict()
    ours.to_json_file(tmp_path / "settings.json")
    assert kind.from_json_file(tmp_path / "settings.json") == ours
    assert kind.from_dict(ours.to_dict(), do_normalize=False) == ours.with_settings(do_normalize=False)
    [path] = ours.save_pretrained(tmp_path, push_to_hub=False)
    assert json.loads(Path(path).read_text()) == ours.to_dict()
    assert AutoImageProcessor.from_pretrained(tmp_path, use_fast=True) == ours
    with pytest.raises(BadSetting, match="hf upload"):
        ours.save_pretrained(tmp_path, push_to_hub=True)


def test_squares_as_arrays():
    assert isinstance(IMAGE_PROCESSOR_BY_FAMILY["idefics"](WIDE, return_tensors="np"), np.ndarray)
    [frame] = IMAGE_PROCESSOR_BY_FAMILY["idefics"].preprocess(WIDE, return_tensors=None)
    assert torch.from_numpy(frame).equal(our_pixels("idefics", WIDE)[0])


def test_smolvlm_has_a_name_of_its_own(tmp_path):
    ours = SmolVLMImageProcessor(**IDEFICS3_SETTINGS)
    ours.save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SmolVLMImageProcessor
    assert ours(WIDE, return_tensors="pt")["pixel_values"].equal(our_pixels("idefics3", WIDE))


@each_inline_family
def test_the_grid_can_be_asked_for(family):
    made = IMAGE_PROCESSOR_BY_FAMILY[family].with_settings(return_row_col_info=True)(WIDE)
    assert made["rows"] == IMAGE_PROCESSOR_BY_FAMILY[family](WIDE, return_row_col_info=True)["rows"]
    assert "rows" not in IMAGE_PROCESSOR_BY_FAMILY[family](WIDE)


@each
def test_other_modes_can_be_refused(family):
    assert our_pixels(family, WIDE, do_convert_rgb=False).equal(our_pixels(family, WIDE))
    with pytest.raises(BadPicture, match="mode L"):
        our_pixels(family, WIDE.convert("L"), do_convert_rgb=False)


@pytest.mark.parametrize("options", [{}, {"do_image_splitting": False}, {"size": {"height": 24, "width": 9}}])
def test_frames_are_counted_as_they_are_made(options):
    for picture in (WIDE, TALL, SMALL):
        count, rows, columns = IMAGE_PROCESSOR_BY_FAMILY["idefics3"].get_number_of_image_patches(
            *reversed(picture.size), options
        )
        made = IMAGE_PROCESSOR_BY_FAMILY["idefics3"](picture, return_row_col_info=True, **options)
        assert made["pixel_values"].shape[1] == count
        assert (rows, columns) == (made["rows"][0][0] or 1, made["cols"][0][0] or 1)
