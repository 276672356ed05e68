"""Draws scenes. Grounds and sprites are cached, so a picture is a few small blends."""

import math
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .scene import GROUND_LIGHT, THING_LIGHT, Scene, SceneItem, Texture, night_rgb
from .things import CATALOG, COLOR_RGB, GROUND_RGB, is_colored_shape, shape_and_color

BASE_SIZE = 96
FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only size that the bitmap font has
THING_PIXELS_BY_SIZE = {
    "large": 30,
    "small": 22,
}  # the longer side of a thing, in pixels of a 96-pixel picture
SHAPE_SIZE = 256

Pixels = NDArray[np.uint8]


def draw_scene(scene: Scene, size: int = BASE_SIZE) -> Pixels:
    """Scene -> uint8 (size, size, 3); equal scenes give equal pixels."""
    if size <= 0 or size % BASE_SIZE:
        raise ValueError(f"a picture's side must be a multiple of {BASE_SIZE}, not {size}")
    picture = _draw_ground(scene.ground, scene.texture, scene.is_night, scene.seed, size).copy()
    for item in scene.items:
        _draw_item(picture, item, scene.is_night, size)
    return picture


def _draw_item(picture: Pixels, item: SceneItem, is_night: bool, size: int) -> None:
    cell, scale = size // 3, size // BASE_SIZE
    color, transmittance = _render_sprite(
        item.class_id, item.size, item.is_mirrored, item.angle, is_night, scale
    )
    height, width = color.shape[:2]
    row, column = divmod(item.cell, 3)
    top = row * cell + (cell - height) // 2 + item.dy * scale
    left = column * cell + (cell - width) // 2 + item.dx * scale
    window = picture[top : top + height, left : left + width]
    window[...] = (window * transmittance + color) >> 8


@lru_cache(maxsize=16384)
def _render_sprite(
    class_id: int, size: str, is_mirrored: bool, angle: int, is_night: bool, scale: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """(colour times opacity, transmittance), both times 256."""
    image = (
        _render_colored_shape(class_id)
        if is_colored_shape(class_id)
        else _render_emoji(CATALOG[class_id].emoji)
    )
    if is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle:
        image = _crop_transparent_border(image.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    ratio = THING_PIXELS_BY_SIZE[size] * scale / max(image.size)
    sprite_size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    pixels = np.asarray(image.resize(sprite_size, Image.Resampling.LANCZOS), dtype=np.float64)
    color, opacity = pixels[..., :3], pixels[..., 3:] / 255
    if is_night:
        color = color * THING_LIGHT + np.array(night_rgb((0, 0, 0), THING_LIGHT))
    transmittance = np.round(256 * (1 - opacity))
    return (
        np.floor((256 - transmittance) * color.clip(0, 255)).astype(np.uint16),
        transmittance.astype(np.uint16),
    )


def _crop_transparent_border(image: Image.Image) -> Image.Image:
    return image.crop(image.getchannel("A").point(lambda value: 255 * (value > 8)).getbbox())


@cache
def _load_font() -> ImageFont.FreeTypeFont:
    if not FONT_PATH.is_file():
        raise FileNotFoundError(f"{FONT_PATH} is missing: install the Debian package fonts-noto-color-emoji")
    return ImageFont.truetype(str(FONT_PATH), FONT_SIZE)


@cache
def _render_emoji(emoji: str) -> Image.Image:
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), emoji, font=_load_font(), embedded_color=True)
    return _crop_transparent_border(image)


@cache
def _render_colored_shape(class_id: int) -> Image.Image:
    """A coloured shape, large, with smooth edges."""
    shape, color = shape_and_color(class_id)
    mask = Image.new("L", (4 * SHAPE_SIZE, 4 * SHAPE_SIZE))
    ImageDraw.Draw(mask).polygon(
        [(4 * SHAPE_SIZE * x, 4 * SHAPE_SIZE * y) for x, y in _shape_outline(shape)], fill=255
    )
    image = Image.new("RGBA", (SHAPE_SIZE, SHAPE_SIZE), COLOR_RGB[color])
    image.putalpha(mask.resize((SHAPE_SIZE, SHAPE_SIZE), Image.Resampling.BOX))
    return _crop_transparent_border(image)


def _shape_outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape in the unit square."""
    angles = [2 * math.pi * step / 180 for step in range(180)]
    if shape == "circle":
        return [(0.5 + 0.49 * math.cos(turn), 0.5 + 0.49 * math.sin(turn)) for turn in angles]
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
            for turn in angles
        ]
    near, far = 0.34, 0.66
    return [
        (near, 0), (far, 0), (far, near), (1, near), (1, far), (far, far),
        (far, 1), (near, 1), (near, far), (0, far), (0, near), (near, near),
    ]  # fmt: skip


@lru_cache(maxsize=1024)
def _draw_ground(ground: str, texture: Texture, is_night: bool, seed: int, size: int) -> Pixels:
    color = night_rgb(GROUND_RGB[ground], GROUND_LIGHT) if is_night else GROUND_RGB[ground]
    lightness = np.zeros((BASE_SIZE, BASE_SIZE))
    rng = np.random.default_rng(seed)
    if texture == "graded":
        gradient_angle = rng.uniform(0, 2 * math.pi)
        down, across = np.mgrid[-1 : 1 : BASE_SIZE * 1j, -1 : 1 : BASE_SIZE * 1j]
        lightness = 0.09 * (math.cos(gradient_angle) * across + math.sin(gradient_angle) * down)
    elif texture == "noisy":
        lightness = rng.normal(0, 0.06, (BASE_SIZE, BASE_SIZE))
    picture: NDArray[np.float64] = np.multiply.outer(1 + _upscale(lightness, size), np.array(color))
    if is_night:
        stars = _upscale(_star_brightness(rng), size)[..., None]
        picture = picture * (1 - stars) + np.array((255.0, 248.0, 205.0)) * stars
    return picture.clip(0, 255).round().astype(np.uint8)


def _star_brightness(rng: np.random.Generator) -> NDArray[np.float64]:
    """How bright each point of a 96-pixel sky is: a dozen stars of one pixel with a faint glow."""
    sky = np.zeros((BASE_SIZE, BASE_SIZE))
    for down, across in rng.integers(2, BASE_SIZE - 2, (12, 2)):
        sky[down - 1 : down + 2, across] = 0.25
        sky[down, across - 1 : across + 2] = 0.25
        sky[down, across] = 0.95
    return sky


def _upscale(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    if size == BASE_SIZE:
        return values
    image = Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image, dtype=np.float64)
