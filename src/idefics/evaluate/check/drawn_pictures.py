"""Pictures and texts that checks ask about: drawn by integer arithmetic, so that they are equal on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idefics.demo import pictures
from idefics.messages import Picture, user

if TYPE_CHECKING:
    from idefics.evaluate.check.checks import CheckSubject
    from idefics.generation.prompts import PromptItems
    from idefics.prompt import Prompt

SIDE = 96  # pixels
COLORS = {"red": (200, 30, 30), "blue": (30, 60, 200), "green": (30, 150, 50), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (245, 245, 245)

# Written for this check, in plain words, so that every language model that was trained on English finds it easy.
PLAIN_TEXT = (
    "The sun rises in the east and sets in the west. In the morning people eat breakfast and go to work. "
    "Children go to school, where they learn to read and to write. In the evening the family sits at the table "
    "and talks about the day. After dinner they wash the dishes, brush their teeth and go to bed."
)

Pixels = NDArray[np.uint8]


def draw_shape(shape: str, color: str) -> Pixels:
    """A picture of one shape in the middle: (96, 96, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    radius = SIDE // 3
    inside = {
        "circle": x * x + y * y < radius * radius,
        "square": (abs(x) < radius) & (abs(y) < radius),
        "triangle": (y < radius) & (2 * abs(x) < y + radius),
    }[shape]
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:] = BACKGROUND
    pixels[inside] = COLORS[color]
    return pixels


def draw_landscape(width: int, height: int) -> Pixels:
    """A picture with gradients and fine rings, in which every filter of a resizer shows: (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    rings = ((x - width // 2) ** 2 + (y - height // 2) ** 2) // 16 % 256
    return np.stack((255 * x // width, 255 * y // height, rings), axis=-1).astype(np.uint8)


def fixed_items() -> dict[str, PromptItems]:
    """The raw prompts that are computed in several ways, by name."""
    return {
        "text": ["The sun rises in the east and sets in the west. In the morning"],
        "picture": [draw_shape("circle", "red"), "This is a picture of a red circle. The"],
        "two pictures": [
            *(draw_shape("square", "blue"), "A blue square."),
            *(draw_shape("triangle", "green"), "A green"),
        ],
    }


def trained_prompts(subject: CheckSubject) -> list[Prompt]:
    """Questions about three of the bundled pictures, as people ask them: what a model was trained to answer."""
    vlm, question = subject.vlm, "What is in this image?"
    is_chat = subject.processor.prompt_format.kind == "chat"
    conversations = [[user(Picture(picture), question)] for picture in pictures()[:3]]
    raw_prompts: list[PromptItems] = [[picture, question] for picture in pictures()[:3]]
    return [
        vlm.prompt(items, detail="low", max_tiles=1) for items in (conversations if is_chat else raw_prompts)
    ]
