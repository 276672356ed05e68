"""Scenes to pixels. Grounds and sprites are drawn once and kept, so that a picture is a few small blends."""

import math
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .scene import GROUND_LIGHT, THING_LIGHT, Item, Scene, Texture, by_night
from .things import CATALOG, COLORS, GROUNDS, is_shape, shape_and_color

SIDE = 96
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only size that the bitmap font has
EXTENT = {"large": 30, "small": 22}  # the longer side of a thing, in pixels of a 96-pixel picture
STENCIL = 256

Pixels = NDArray[np.uint8]


def draw(scene: Scene, side: int = SIDE) -> Pixels:
    """The picture of a scene, uint8 (side, side, 3); the same scene always gives the same pixels."""
    if side <= 0 or side % SIDE:
        raise ValueError(f"a picture's side must be a multiple of {SIDE}, not {side}")
    picture = _ground(scene.ground, scene.texture, scene.night, scene.seed, side).copy()
    for item in scene.items:
        _blend(picture, item, scene.night, side)
    return picture


def _blend(picture: Pixels, item: Item, night: bool, side: int) -> None:
    cell, scale = side // 3, side // SIDE
    color, see_through = _sprite(item.what, item.size, item.mirrored, item.angle, night, scale)
    height, width = color.shape[:2]
    row, column = divmod(item.cell, 3)
    top = row * cell + (cell - height) // 2 + item.dy * scale
    left = column * cell + (cell - width) // 2 + item.dx * scale
    window = picture[top : top + height, left : left + width]
    window[...] = (window * see_through + color) >> 8


@lru_cache(maxsize=16384)
def _sprite(
    what: int, size: str, mirrored: bool, angle: int, night: bool, scale: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """A thing's colour times its opacity times 256, and 256 times what shows through it."""
    image = _stencil(what) if is_shape(what) else _glyph(CATALOG[what].emoji)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = _trimmed(image.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    ratio = EXTENT[size] * scale / max(image.size)
    shape = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    pixels = np.asarray(image.resize(shape, Image.Resampling.LANCZOS), dtype=np.float64)
    color, opacity = pixels[..., :3], pixels[..., 3:] / 255
    if night:
        color = color * THING_LIGHT + np.array(by_night((0, 0, 0), THING_LIGHT))
    see_through = np.round(256 * (1 - opacity))
    return (
        np.floor((256 - see_through) * color.clip(0, 255)).astype(np.uint16),
        see_through.astype(np.uint16),
    )


def _trimmed(image: Image.Image) -> Image.Image:
    return image.crop(image.getchannel("A").point(lambda value: 255 * (value > 8)).getbbox())


@cache
def _font() -> ImageFont.FreeTypeFont:
    if not FONT.is_file():
        raise FileNotFoundError(f"{FONT} is missing: install the Debian package fonts-noto-color-emoji")
    return ImageFont.truetype(str(FONT), FONT_SIZE)


@cache
def _glyph(emoji: str) -> Image.Image:
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), emoji, font=_font(), embedded_color=True)
    return _trimmed(image)


@cache
def _stencil(what: int) -> Image.Image:
    """A coloured shape, large, with smooth edges."""
    shape, color = shape_and_color(what)
    mask = Image.new("L", (4 * STENCIL, 4 * STENCIL))
    ImageDraw.Draw(mask).polygon([(4 * STENCIL * x, 4 * STENCIL * y) for x, y in _outline(shape)], fill=255)
    image = Image.new("RGBA", (STENCIL, STENCIL), COLORS[color])
    image.putalpha(mask.resize((STENCIL, STENCIL), Image.Resampling.BOX))
    return _trimmed(image)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape in the unit square."""
    around = [2 * math.pi * step / 180 for step in range(180)]
    if shape == "circle":
        return [(0.5 + 0.49 * math.cos(turn), 0.5 + 0.49 * math.sin(turn)) for turn in around]
    if shape == "square":
        return [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)]
    if shape == "triangle":
        return [(0.5, 0.04), (0.98, 0.92), (0.02, 0.92)]
    if shape == "star":
        radii = [0.5, 0.2] * 5
        return [
            (0.5 + radius * math.sin(math.pi * point / 5), 0.5 - radius * math.cos(math.pi * point / 5))
            for point, radius in enumerate(radii)
        ]
    if shape == "heart":
        return [
            (
                0.5 + 0.49 * math.sin(turn) ** 3,
                0.46
                - (13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn))
                / 34,
            )
            for turn in around
        ]
    near, far = 0.34, 0.66
    return [
        (near, 0), (far, 0), (far, near), (1, near), (1, far), (far, far),
        (far, 1), (near, 1), (near, far), (0, far), (0, near), (near, near),
    ]  # fmt: skip


@lru_cache(maxsize=1024)
def _ground(ground: str, texture: Texture, night: bool, seed: int, side: int) -> Pixels:
    color = by_night(GROUNDS[ground], GROUND_LIGHT) if night else GROUNDS[ground]
    lightness = np.zeros((SIDE, SIDE))
    rng = np.random.default_rng(seed)
    if texture == "graded":
        turn = rng.uniform(0, 2 * math.pi)
        down, across = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
        lightness = 0.09 * (math.cos(turn) * across + math.sin(turn) * down)
    elif texture == "noisy":
        lightness = rng.normal(0, 0.06, (SIDE, SIDE))
    picture: NDArray[np.float64] = np.multiply.outer(1 + _enlarged(lightness, side), np.array(color))
    if night:
        stars = _enlarged(_stars(rng), side)[..., None]
        picture = picture * (1 - stars) + np.array((255.0, 248.0, 205.0)) * stars
    return picture.clip(0, 255).round().astype(np.uint8)


def _stars(rng: np.random.Generator) -> NDArray[np.float64]:
    """How bright each point of a 96-pixel sky is: a dozen stars of one pixel with a faint glow."""
    sky = np.zeros((SIDE, SIDE))
    for down, across in rng.integers(2, SIDE - 2, (12, 2)):
        sky[down - 1 : down + 2, across] = 0.25
        sky[down, across - 1 : across + 2] = 0.25
        sky[down, across] = 0.95
    return sky


def _enlarged(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    if side == SIDE:
        return values
    image = Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.float64)
