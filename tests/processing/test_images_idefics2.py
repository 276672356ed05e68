"""Frames of native size equal the released processor's, bit for bit before normalising, split and whole."""

import dataclasses
import warnings

import numpy as np
import pytest

from idefics.config import ImageProcessorConfig
from idefics.processing.image_processor import preprocess_image
from idefics.processing.tile_plan import clamp_frame_size, compute_tile_grid
from idefics.processing.to_rgb import to_rgb
from processing.pictures_tiny import random_picture, split_into_frames
from processing.test_images import PICTURE_BY_KIND

UNSPLIT_CONFIG = ImageProcessorConfig(
    frame_size=98,
    longest_edge=98,
    shortest_edge=38,
    do_image_splitting=False,
    resample="bilinear",
    rescale_factor=1 / 255,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    tokens_per_frame=64,
)
SPLIT_CONFIG = dataclasses.replace(UNSPLIT_CONFIG, do_image_splitting=True)
RELEASED_CONFIG = dataclasses.replace(UNSPLIT_CONFIG, frame_size=980, longest_edge=980, shortest_edge=378)
ONE_PIXEL_WIDE = {"1x1", "1x4000", "4000x1"}  # too thin for quarters: the last test
PICTURES = {
    **PICTURE_BY_KIND,
    "not to be resized": random_picture("RGB", (70, 50)),
    "too large": random_picture("RGB", (301, 203)),
    "one edge too short": random_picture("RGB", (97, 11)),
    "exactly the longest": random_picture("RGB", (98, 98)),
    "2x2": random_picture("RGB", (2, 2)),
}
every_config = pytest.mark.parametrize("config", [UNSPLIT_CONFIG, SPLIT_CONFIG], ids=["whole", "split"])


@pytest.fixture(scope="module")
def processor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers talks about torchvision
        pytest.importorskip("transformers")
        from transformers.models.idefics2 import image_processing_pil_idefics2
    return image_processing_pil_idefics2


@pytest.fixture(scope="module")
def reference(processor):
    """The released processor's frames (3, h, w) of a picture, none padded."""

    def frames(image, config, **switches):
        size = {"longest_edge": config.longest_edge, "shortest_edge": config.shortest_edge}
        made = processor.Idefics2ImageProcessorPil(
            size=size, do_image_splitting=config.do_image_splitting, do_pad=False
        )
        return made(image, **switches)["pixel_values"][0]

    return frames


@every_config
@pytest.mark.parametrize("name", sorted(PICTURES.keys() - ONE_PIXEL_WIDE))
def test_uint8_frames_are_the_released_ones(name, config, reference):
    expected = reference(PICTURES[name], config, do_rescale=False, do_normalize=False)
    frames, rows, columns = split_into_frames(np.asarray(to_rgb(PICTURES[name])), config)
    assert (rows, columns) == ((2, 2) if config.do_image_splitting else (0, 0))
    assert len(frames) == len(expected) == (5 if config.do_image_splitting else 1)
    for ours, theirs in zip(frames, expected, strict=True):
        assert np.array_equal(ours.transpose(2, 0, 1), theirs)


@every_config
@pytest.mark.parametrize("name", ["RGB", "LA", "odd", "too large"])
def test_normalised_frames_are_the_released_ones(name, config, reference):
    expected, tiles = reference(PICTURES[name], config), preprocess_image(to_rgb(PICTURES[name]), config)
    for ours, theirs in zip(tiles.frames, expected, strict=True):
        assert ours.dtype == np.float32 and ours.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_sizes_are_the_released_ones(processor):
    class Edges:
        shortest_edge, longest_edge = RELEASED_CONFIG.shortest_edge, RELEASED_CONFIG.longest_edge

    rng = np.random.default_rng(0)
    near = [377, 378, 379, 979, 980, 981]
    sizes = [*rng.integers(1, 5000, (300, 2)).tolist(), *((w, h) for w in near for h in near)]
    for width, height in sizes:
        shape = np.broadcast_to(np.uint8(0), (3, height, width))
        expected = processor.get_resize_output_image_size(shape, Edges)
        assert clamp_frame_size(width, height, RELEASED_CONFIG)[::-1] == expected


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        ((640, 480), (640, 480)),  # as it is
        ((1960, 980), (980, 490)),
        ((980, 1961), (489, 980)),
        ((3000, 300), (980, 378)),  # the aspect breaks
        ((100, 50), (378, 378)),
        ((500, 10), (500, 378)),
    ],
)
def test_longest_edge_first_then_the_shortest(size, frame):
    assert clamp_frame_size(*size, RELEASED_CONFIG) == frame


def test_quarters_are_cut_before_they_are_resized_and_stand_row_by_row():
    """One colour per quarter; with odd sizes the middle line belongs to the right and the lower quarters."""
    pixels = np.zeros((75, 91, 3), np.uint8)
    pixels[:37, :45], pixels[:37, 45:], pixels[37:, :45], pixels[37:, 45:] = 10, 20, 30, 40
    frames, *_ = split_into_frames(pixels, SPLIT_CONFIG)
    assert [frame.shape[:2] for frame in frames] == [(38, 45), (38, 46), (38, 45), (38, 46), (75, 91)]
    assert [np.unique(frame).tolist() for frame in frames[:4]] == [[10], [20], [30], [40]]


@pytest.mark.parametrize("name", sorted(ONE_PIXEL_WIDE))
def test_a_line_of_pixels_is_used_whole(name, reference):
    """The released processor fails at a quarter without pixels, or makes some up."""
    image = PICTURES[name]
    frames, rows, columns = split_into_frames(np.asarray(image), SPLIT_CONFIG)
    assert (rows, columns) == compute_tile_grid(*image.size, SPLIT_CONFIG) == (0, 0)
    (expected,) = reference(image, UNSPLIT_CONFIG, do_rescale=False, do_normalize=False)
    assert len(frames) == 1 and np.array_equal(frames[0].transpose(2, 0, 1), expected)
