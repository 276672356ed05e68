"""`detail` and `max_tiles`: fewer frames, and a prompt with as many image tokens as they have."""

import dataclasses

import numpy as np
import pytest

from idefics.config import ImageProcessorConfig
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import ImageDetail, Picture, user
from idefics.processing.message_parsing import to_messages
from idefics.processing.tile_plan import apply_image_detail, compute_tile_grid
from processing.pictures_tiny import CROSS_ATTENTION_CONFIG
from processing.test_images_idefics2 import SPLIT_CONFIG
from processing.test_processor import CROSS_ATTENTION_PROCESSOR, TILES_PROCESSOR

RELEASED_CONFIG = ImageProcessorConfig(
    frame_size=512,
    longest_edge=2048,
    do_image_splitting=True,
    resample="lanczos",
    rescale_factor=1 / 255,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    tokens_per_frame=64,
)


def tile_grid(size, image_detail, config=RELEASED_CONFIG):
    return compute_tile_grid(*size, apply_image_detail(*size, config, image_detail))


@pytest.mark.parametrize(
    "config",
    [
        RELEASED_CONFIG,
        SPLIT_CONFIG,
        CROSS_ATTENTION_CONFIG,
        dataclasses.replace(RELEASED_CONFIG, do_image_splitting=False),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (4000, 3000)])
def test_high_is_the_released_config(config, size):
    assert apply_image_detail(*size, config, ImageDetail()) == config


@pytest.mark.parametrize("config", [RELEASED_CONFIG, SPLIT_CONFIG, CROSS_ATTENTION_CONFIG])
def test_low_is_one_frame_made_as_where_the_checkpoint_does_not_split(config):
    assert apply_image_detail(3000, 2000, config, ImageDetail("low")) == dataclasses.replace(
        config, do_image_splitting=False
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 48), (0, 0)),
        ((512, 512), (0, 0)),
        ((640, 480), (0, 0)),
        ((1000, 700), (2, 2)),
        ((1536, 500), (1, 3)),
        ((1600, 1500), (3, 3)),
        ((2000, 2000), (4, 4)),
        ((8000, 8000), (4, 4)),
        ((480, 1600), (3, 1)),
    ],
)
def test_auto_has_no_more_tiles_than_pixels_fill(size, expected):
    assert tile_grid(size, ImageDetail("auto")) == expected
    assert tile_grid(size, ImageDetail()) >= expected


def test_auto_quarters_only_what_is_made_smaller():
    """Idefics 2: quarters of a picture within 980 pixels have no more detail than the whole picture."""
    config = dataclasses.replace(SPLIT_CONFIG, longest_edge=980, shortest_edge=378)
    assert tile_grid((980, 500), ImageDetail("auto"), config) == (0, 0)
    assert tile_grid((981, 500), ImageDetail("auto"), config) == (2, 2)
    assert tile_grid((980, 500), ImageDetail(), config) == (2, 2)


@pytest.mark.parametrize("size", [(1, 1), (640, 480), (2000, 1999), (300, 3000), (5000, 100)])
@pytest.mark.parametrize("most", [1, 2, 4, 5, 9, 16, 17, 100])
def test_max_tiles_counts_every_frame_and_keeps_the_aspect(size, most):
    full, bounded = tile_grid(size, ImageDetail()), tile_grid(size, ImageDetail(max_tiles=most))
    assert bounded[0] * bounded[1] + 1 <= most
    assert bounded == full or full[0] * full[1] + 1 > most
    if bounded != (0, 0):
        assert (bounded[0] >= bounded[1]) == (full[0] >= full[1]) or bounded[0] == bounded[1]


def test_max_tiles_takes_the_largest_grid_that_fits():
    assert [tile_grid((2000, 1999), ImageDetail(max_tiles=most)) for most in (17, 16, 10, 9, 5, 4)] == [
        *[(4, 4), (3, 3), (3, 3), (2, 2), (2, 2), (0, 0)]
    ]
    assert tile_grid((1200, 1000), ImageDetail("auto", 4), RELEASED_CONFIG) == (0, 0)


def test_quarters_and_the_whole_are_five():
    config = dataclasses.replace(SPLIT_CONFIG, longest_edge=980)
    assert tile_grid((2000, 1000), ImageDetail(max_tiles=5), config) == (2, 2)
    assert tile_grid((2000, 1000), ImageDetail(max_tiles=4), config) == (0, 0)


@pytest.mark.parametrize(
    "image_detail",
    [ImageDetail("low"), ImageDetail("auto"), ImageDetail(max_tiles=5), ImageDetail(max_tiles=1)],
)
def test_the_prompt_has_image_tokens_for_every_frame(image_detail):
    pixels = np.zeros((9, 14, 3), np.uint8)
    processor = TILES_PROCESSOR.with_image_detail(image_detail)
    prompt = processor.encode_raw(["a", pixels, "b"])
    (tiles,) = prompt.pictures
    assert len(tiles.frames) == tiles.rows * tiles.columns + 1
    assert (
        len(prompt.image_token_positions[0])
        == len(tiles.frames) * TILES_PROCESSOR.image_config.tokens_per_frame
    )
    assert processor.count_image_tokens(Picture(pixels)) == len(processor.encode_raw([pixels]))
    assert len(prompt) < len(TILES_PROCESSOR.encode_raw(["a", pixels, "b"]))
    assert TILES_PROCESSOR.image_detail == ImageDetail()


def test_a_picture_may_have_its_own_detail():
    pixels = np.zeros((40, 64, 3), np.uint8)
    frames = [
        len(tiles.frames)
        for tiles in TILES_PROCESSOR.with_image_detail(ImageDetail(max_tiles=5))
        .encode_raw([pixels, Picture(pixels, detail="low"), Picture(pixels, max_tiles=100)])
        .pictures
    ]
    assert frames[1] == 1 < frames[0] <= 5 < frames[2]


def test_image_details_that_change_nothing_share_one_key():
    """Equal frames have equal hashes, whatever `detail` led to them; other frames have others."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    key = TILES_PROCESSOR.encode_raw([pixels]).pictures[0].content_hash
    assert (
        TILES_PROCESSOR.with_image_detail(ImageDetail(max_tiles=10**6))
        .encode_raw([pixels])
        .pictures[0]
        .content_hash
        == key
    )
    assert (
        TILES_PROCESSOR.with_image_detail(ImageDetail("low")).encode_raw([pixels]).pictures[0].content_hash
        != key
    )


def test_where_pictures_are_one_frame_nothing_changes():
    pixels = np.zeros((40, 64, 3), np.uint8)
    for image_detail in (ImageDetail("low"), ImageDetail("auto"), ImageDetail(max_tiles=1)):
        assert (
            CROSS_ATTENTION_PROCESSOR.with_image_detail(image_detail).encode_raw(["a", pixels]).ids
            == CROSS_ATTENTION_PROCESSOR.encode_raw(["a", pixels]).ids
        )


def test_parts_of_messages_have_detail_as_in_openais_api():
    url = "data:image/png;base64,AA=="
    parts = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": url, "detail": None}},
        {"type": "image", "image": b"abc", "max_tiles": 4},
    ]
    (message,) = to_messages([{"role": "user", "content": parts}])
    assert [(part.detail, part.max_tiles) for part in message.parts] == [
        ("low", None),
        (None, None),
        (None, 4),
    ]
    wrong = {"type": "image_url", "image_url": {"url": url, "detail": "best"}}
    with pytest.raises(BadPrompt, match=r"message 1: content\[0\].*detail is 'best'; give low, high or auto"):
        to_messages([{"role": "user", "content": [wrong]}])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"detail": "medium"}, "detail is 'medium'; give low, high or auto"),
        ({"detail": ""}, "detail is ''"),
        ({"max_tiles": 0}, "max_tiles is 0; give a whole number from 1"),
        ({"max_tiles": 2.5}, "max_tiles is 2.5"),
        ({"max_tiles": True}, "max_tiles is True"),
    ],
)
def test_invalid_image_details_are_refused(said, message):
    for make in (ImageDetail, lambda **said: user(Picture("a.png", **said))):
        with pytest.raises(BadSetting, match=message):
            make(**said)
