"""Helpers: small pictures of every kind as Pillow images and as files, and image processor settings."""

import dataclasses
import io

import numpy as np
import PIL.Image

from idefics.config import ImageProcessorConfig
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture, resize_and_cut
from idefics.processing.picture_files import EXIF_ORIENTATION_TAG
from idefics.processing.tile_plan import plan_tiles

TILES_CONFIG = ImageProcessorConfig(
    frame_size=16,
    longest_edge=64,
    do_image_splitting=True,
    resample="lanczos",
    rescale_factor=1 / 255,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    tokens_per_frame=1,
)
UNSPLIT_CONFIG = dataclasses.replace(TILES_CONFIG, do_image_splitting=False)
CROSS_ATTENTION_CONFIG = ImageProcessorConfig(
    frame_size=24,
    longest_edge=None,
    do_image_splitting=False,
    resample="bicubic",
    rescale_factor=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    tokens_per_frame=1,
)
UNEVEN_CONFIG = dataclasses.replace(
    TILES_CONFIG, longest_edge=50
)  # no multiple of the tile: no released checkpoint has that
CONFIG_BY_NAME = {
    "tiles": TILES_CONFIG,
    "uneven": UNEVEN_CONFIG,
    "unsplit": UNSPLIT_CONFIG,
    "cross_attention": CROSS_ATTENTION_CONFIG,
}


def random_pixels(height, width, channels, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_picture(mode, size=(37, 23)):
    width, height = size
    channels = {"L": 1, "1": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}[mode]
    array = random_pixels(height, width, channels)
    if mode in {"1", "P"}:
        return PIL.Image.fromarray(array).convert(mode)
    if mode in {"CMYK", "YCbCr", "LA"}:
        return PIL.Image.frombytes(mode, size, array.tobytes())
    return PIL.Image.fromarray(array, mode=None)


def open_trusted(source):
    return open_picture(Picture(source), Fetcher(policy="off"))


def split_into_frames(pixels, config):
    """The uint8 frames of a picture (h, w, 3), and the rows and columns of its grid."""
    plan = plan_tiles(pixels.shape[1], pixels.shape[0], config)
    return resize_and_cut(pixels, plan, config.resample), plan.rows, plan.columns


def encode_picture(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def encode_with_orientation(orientation, format):
    image = random_picture("RGB", (6, 4))
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION_TAG] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    return encode_picture(image, format, exif=exif, **options)
