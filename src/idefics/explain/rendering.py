"""Draws heat over pictures: orange where a part carried a word, blue where it spoke against it, with a legend.

Blue and orange differ for every common kind of colour blindness (Okabe and Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORANGE, BLUE = (213, 94, 0), (0, 114, 178)  # vermillion and blue of Okabe and Ito
PANEL_EDGE = 480  # pixels of a panel's longer edge
FONT_SIZE, MARGIN, LEGEND_HEIGHT = 16, 10, 54
MAX_OPACITY = 0.8  # of the hottest cell
MAX_CAPTION_CHARACTERS = 40
MIN_SCALE = 0.1  # heat at full colour is at least this, so that a flat map is drawn flat


@dataclass(frozen=True, eq=False)
class Panel:
    """One map over one picture.

    Attributes:
        picture: the picture, in mode RGB.
        cells: (rows, columns), the heat of each cell.
        caption: the word.
        log_probability: of the word, in nats.
    """

    picture: PIL.Image.Image
    cells: NDArray[np.float32]
    caption: str
    log_probability: float


def draw_panels(panels: Sequence[Panel], num_columns: int, unit: str) -> PIL.Image.Image:
    """Draws panels row by row with one scale of colours and a legend below.

    Args:
        num_columns: how many panels are in a row; one panel in a row becomes three.
        unit: the unit of the heat.
    """
    num_columns = min(3, len(panels)) if num_columns == 1 else num_columns
    scale = max(MIN_SCALE, *(float(np.abs(panel.cells).max()) for panel in panels))
    tiles = [_draw_panel(panel, scale) for panel in panels]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    num_rows = -(-len(tiles) // num_columns)
    size = (
        num_columns * (width + MARGIN) + MARGIN,
        num_rows * (height + MARGIN) + MARGIN + LEGEND_HEIGHT,
    )
    sheet = PIL.Image.new("RGB", size, "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, num_columns)
        sheet.paste(tile, (MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN)))
    _draw_legend(sheet, scale, unit)
    return sheet


def _draw_panel(panel: Panel, scale: float) -> PIL.Image.Image:
    """A picture with its heat and its caption below."""
    picture = panel.picture.convert("RGB")
    factor = PANEL_EDGE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    # Grey, so that the picture's own colours are not taken for heat.
    gray = picture.resize(size, PIL.Image.Resampling.BICUBIC).convert("L")
    gray_pixels = np.asarray(gray, np.float32)[..., None].repeat(3, axis=2)
    heat = np.asarray(PIL.Image.fromarray(panel.cells).resize(size, PIL.Image.Resampling.BILINEAR))
    drawn = blend_heat(gray_pixels, heat, scale)
    caption_height = 2 * FONT_SIZE
    tile = PIL.Image.new("RGB", (size[0], size[1] + caption_height), "white")
    tile.paste(PIL.Image.fromarray(drawn), (0, 0))
    caption = panel.caption.replace("\n", " ")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        caption = f"{caption[: MAX_CAPTION_CHARACTERS - 1]}…"
    text = f"{caption}   {round(panel.log_probability, 2) + 0.0:.2f} nats"
    PIL.ImageDraw.Draw(tile).text((2, size[1] + 6), text, "black", PIL.ImageFont.load_default(FONT_SIZE))
    return tile


def blend_heat(gray: NDArray[np.float32], heat: NDArray[np.float32], scale: float) -> NDArray[np.uint8]:
    """Blends heat over grey pixels: the more heat, the more opaque its colour.

    Args:
        gray: (H, W, 3) of 0 to 255.
        heat: (H, W).
        scale: the heat of the most opaque colour.

    Returns:
        (H, W, 3)
    """
    strength = np.clip(np.abs(heat) / scale, 0, 1)[..., None] * MAX_OPACITY
    color = np.where(heat[..., None] >= 0, np.array(ORANGE, np.float32), np.array(BLUE, np.float32))
    return np.round(gray * (1 - strength) + color * strength).astype(np.uint8)


def _draw_legend(sheet: PIL.Image.Image, scale: float, unit: str) -> None:
    """Draws the scale of colours at the sheet's lower edge: both ends and 0, with the unit."""
    width, top = min(260, sheet.width - 2 * MARGIN), sheet.height - LEGEND_HEIGHT
    values = np.linspace(-scale, scale, width, dtype=np.float32)[None].repeat(12, axis=0)
    bar = blend_heat(np.full((*values.shape, 3), 215, np.float32), values, scale)
    sheet.paste(PIL.Image.fromarray(bar), (MARGIN, top))
    font = PIL.ImageFont.load_default(FONT_SIZE - 2)
    draw = PIL.ImageDraw.Draw(sheet)
    for position, anchor, text in (
        (0, "la", f"-{scale:.1f}"),
        (width // 2, "ma", "0"),
        (width, "ra", f"{scale:.1f}"),
    ):
        draw.text((MARGIN + position, top + 14), text, "black", font, anchor=anchor)
    draw.text((MARGIN, top + 30), f"heat in {unit}", "black", font)
