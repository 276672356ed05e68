"""A scene: what stands where, on which ground, by day or by night; and how scenes are drawn by lot."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from .split import HELD_COUNTS, HELD_GROUND, HELD_PAIRS, HELD_PLACE, is_held_out
from .things import (
    CAMOUFLAGE,
    CATALOG,
    CELL_CLASSES,
    COLORS,
    FIRST_SHAPE,
    GROUNDS,
    PLACES,
    Thing,
    is_shape,
    shape_and_color,
)

Split = Literal["train", "held-out"]
Size = Literal["large", "small"]
Texture = Literal["plain", "graded", "noisy"]
Only = Literal["thing", "shape"]

TEXTURES: tuple[Texture, ...] = ("plain", "graded", "noisy")
ANGLES = (-20, -10, 0, 10, 20)
ROOM = {
    "large": 1,
    "small": 4,
}  # how far a thing may move and stay in its cell, in pixels of a 96-pixel picture
SEEDS = 32  # enough different noises and skies, and few enough to be drawn once and kept
NUMBER_OF_THINGS = {1: 0.15, 2: 0.32, 3: 0.30, 4: 0.23}
REPEATED = 0.36  # of the scenes of two things or more
SHAPES_AMONG_THINGS = 0.3
NIGHTS = 0.35
GROUND_LIGHT, THING_LIGHT = 0.5, 0.8  # what the night leaves of the light
HARD_TO_TELL = {"day": 90.0, "night": 65.0}  # a distance of colours


@dataclass(frozen=True)
class Item:
    """One thing in one cell; the offset is in pixels of a 96-pixel picture."""

    what: int
    cell: int
    size: Size = "large"
    mirrored: bool = False
    angle: int = 0
    dx: int = 0
    dy: int = 0

    @property
    def thing(self) -> Thing:
        """The thing's words."""
        return CATALOG[self.what]

    @property
    def place(self) -> str:
        """The cell in words, such as "at the top left"."""
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn; the items stand in reading order."""

    ground: str
    texture: Texture
    night: bool
    items: tuple[Item, ...]
    seed: int = 0


def by_night(color: tuple[int, int, int], light: float) -> tuple[float, float, float]:
    """A colour as moonlight shows it: darker, and blue last of all."""
    red, green, blue = color
    return light * red, light * green, light * blue + 18


@cache
def is_visible(what: int, ground: str, night: bool) -> bool:
    """Whether a thing stands out from a ground."""
    if not is_shape(what):
        return CATALOG[what].name not in CAMOUFLAGE.get(ground, ())
    color = shape_and_color(what)[1]
    if color == ground:
        return False
    front: tuple[float, ...] = COLORS[color]
    back: tuple[float, ...] = GROUNDS[ground]
    if night:
        front, back = by_night(COLORS[color], THING_LIGHT), by_night(GROUNDS[ground], GROUND_LIGHT)
    return float(np.linalg.norm(np.subtract(front, back))) > HARD_TO_TELL["night" if night else "day"]


def sample(rng: random.Random, split: Split, things: int | None = None, only: Only | None = None) -> Scene:
    """Draw a scene by lot: `things` of them (1 to 4), if `only` is given all of that sort."""
    while True:
        scene = _sample_any(rng, split == "train", things, only)
        if split == "train" or held_out(scene):
            return scene


def held_out(scene: Scene) -> bool:
    """Whether a scene shows a combination that training never shows."""
    return is_held_out([item.what for item in scene.items], [item.cell for item in scene.items], scene.ground)


def _sample_any(rng: random.Random, training: bool, things: int | None, only: Only | None) -> Scene:
    ground, night = rng.choice(tuple(GROUNDS)), rng.random() < NIGHTS
    number = things or rng.choices(tuple(NUMBER_OF_THINGS), tuple(NUMBER_OF_THINGS.values()))[0]
    free = list(range(len(PLACES)))
    taken: set[int] = set()
    items: list[Item] = []
    for count in _group_sizes(rng, number):
        what = _choose_what(rng, training, only, ground, night, count, taken)
        taken.add(what)
        for _ in range(count):
            cell = rng.choice([cell for cell in free if not (training and cell == HELD_PLACE[what])])
            free.remove(cell)
            items.append(_place(rng, what, cell))
    items.sort(key=lambda item: item.cell)
    return Scene(ground, rng.choice(TEXTURES), night, tuple(items), rng.randrange(SEEDS))


def _group_sizes(rng: random.Random, number: int) -> list[int]:
    """How many of each different thing: often all one, else two or three of the first."""
    if number == 1 or rng.random() > REPEATED:
        return [1] * number
    same = 3 if number > 2 and rng.random() < 0.35 else 2
    return [same] + [1] * (number - same)


def _choose_what(
    rng: random.Random,
    training: bool,
    only: Only | None,
    ground: str,
    night: bool,
    count: int,
    taken: set[int],
) -> int:
    shape = only == "shape" or (only is None and rng.random() < SHAPES_AMONG_THINGS)
    while True:
        what = rng.randrange(FIRST_SHAPE, CELL_CLASSES) if shape else rng.randrange(1, FIRST_SHAPE)
        unseen = HELD_GROUND[what] == ground or what in HELD_PAIRS or (what, count) in HELD_COUNTS
        if what not in taken and not (training and unseen) and is_visible(what, ground, night):
            return what


def _place(rng: random.Random, what: int, cell: int) -> Item:
    size: Size = "large" if rng.random() < 0.5 else "small"
    room = ROOM[size]
    mirrored, angle = rng.random() < 0.5, rng.choice(ANGLES)
    return Item(what, cell, size, mirrored, angle, rng.randint(-room, room), rng.randint(-room, room))


def patch_labels(scene: Scene) -> np.ndarray:
    """The class id of each of the nine cells in reading order, 0 where it is empty."""
    labels = np.zeros(len(PLACES), dtype=np.int64)
    for item in scene.items:
        labels[item.cell] = item.what
    return labels
