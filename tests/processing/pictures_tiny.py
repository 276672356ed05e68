"""Small pictures of every kind, as PIL has them and as files."""

import dataclasses
import io

import numpy as np
import PIL.Image

from idefics.config import ImagePlan
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.images import open_picture
from idefics.processing.picture_files import ORIENTATION

TILES = ImagePlan(
    side=16,
    longest=64,
    splitting=True,
    resample="lanczos",
    scale=1 / 255,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    tokens=1,
)
UNSPLIT = dataclasses.replace(TILES, splitting=False)
BESIDE = ImagePlan(
    side=24,
    longest=None,
    splitting=False,
    resample="bicubic",
    scale=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    tokens=1,
)
UNEVEN = dataclasses.replace(TILES, longest=50)  # no multiple of the tile: no released checkpoint has that
PLANS = {"tiles": TILES, "uneven": UNEVEN, "unsplit": UNSPLIT, "beside": BESIDE}


def noise(height, width, channels, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(mode, size=(37, 23)):
    width, height = size
    channels = {"L": 1, "1": 1, "P": 3, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3}[mode]
    array = noise(height, width, channels)
    if mode in {"1", "P"}:
        return PIL.Image.fromarray(array).convert(mode)
    if mode in {"CMYK", "YCbCr", "LA"}:
        return PIL.Image.frombytes(mode, size, array.tobytes())
    return PIL.Image.fromarray(array, mode=None)


def opened(source):
    return open_picture(Picture(source), Fetcher(policy="off"))


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def oriented(orientation, format):
    image = picture("RGB", (6, 4))
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    return encoded(image, format, exif=exif, **options)
