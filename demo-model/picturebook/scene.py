"""Scenes: which things are in which cells, on which ground, by day or night; and random scenes."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from .split import (
    HELD_OUT_CELL_BY_CLASS,
    HELD_OUT_COUNTS,
    HELD_OUT_GROUND_BY_CLASS,
    HELD_OUT_SHAPES,
    has_held_out_combination,
)
from .things import (
    CAMOUFLAGED_THINGS_BY_GROUND,
    CATALOG,
    COLOR_RGB,
    FIRST_SHAPE_ID,
    GROUND_RGB,
    NUM_CLASSES,
    POSITION_PHRASES,
    Thing,
    is_colored_shape,
    shape_and_color,
)

Split = Literal["train", "held-out"]
Size = Literal["large", "small"]
Texture = Literal["plain", "graded", "noisy"]
ThingFilter = Literal["thing", "shape"]

TEXTURES: tuple[Texture, ...] = ("plain", "graded", "noisy")
ANGLES = (-20, -10, 0, 10, 20)
MAX_OFFSET_BY_SIZE = {
    "large": 1,
    "small": 4,
}  # how far a thing may move and stay in its cell, in pixels of a 96-pixel picture
NUM_SEEDS = 32  # enough different noises and skies, and few enough to be drawn once and kept
PROBABILITY_BY_NUM_THINGS = {1: 0.15, 2: 0.32, 3: 0.30, 4: 0.23}
REPEAT_PROBABILITY = 0.36  # of the scenes of two things or more
SHAPE_PROBABILITY = 0.3
NIGHT_PROBABILITY = 0.35
GROUND_LIGHT, THING_LIGHT = 0.5, 0.8  # what the night leaves of the light
MIN_COLOR_DISTANCE = {"day": 90.0, "night": 65.0}  # a distance of colours


@dataclass(frozen=True)
class SceneItem:
    """One thing in one of the nine cells; its offset is in pixels of a 96-pixel picture."""

    class_id: int
    cell: int
    size: Size = "large"
    is_mirrored: bool = False
    angle: int = 0
    dx: int = 0
    dy: int = 0

    @property
    def thing(self) -> Thing:
        """The thing, with its name, plural and category."""
        return CATALOG[self.class_id]

    @property
    def position_phrase(self) -> str:
        """The cell in words, such as "at the top left"."""
        return POSITION_PHRASES[self.cell]


@dataclass(frozen=True)
class Scene:
    """The contents of one picture; items are in reading order."""

    ground: str
    texture: Texture
    is_night: bool
    items: tuple[SceneItem, ...]
    seed: int = 0


def night_rgb(color: tuple[int, int, int], light: float) -> tuple[float, float, float]:
    """A colour at night: darker, red and green more than blue."""
    red, green, blue = color
    return light * red, light * green, light * blue + 18


@cache
def is_visible(class_id: int, ground: str, is_night: bool) -> bool:
    """Whether a thing contrasts with a ground."""
    if not is_colored_shape(class_id):
        return CATALOG[class_id].name not in CAMOUFLAGED_THINGS_BY_GROUND.get(ground, ())
    color = shape_and_color(class_id)[1]
    if color == ground:
        return False
    thing_rgb: tuple[float, ...] = COLOR_RGB[color]
    ground_rgb: tuple[float, ...] = GROUND_RGB[ground]
    if is_night:
        thing_rgb, ground_rgb = (
            night_rgb(COLOR_RGB[color], THING_LIGHT),
            night_rgb(GROUND_RGB[ground], GROUND_LIGHT),
        )
    return (
        float(np.linalg.norm(np.subtract(thing_rgb, ground_rgb)))
        > MIN_COLOR_DISTANCE["night" if is_night else "day"]
    )


def sample_scene(
    rng: random.Random, split: Split, num_things: int | None = None, thing_filter: ThingFilter | None = None
) -> Scene:
    """A random scene with `num_things` things (1 to 4), all of the sort `thing_filter` if it is given."""
    while True:
        scene = _sample_scene(rng, split == "train", num_things, thing_filter)
        if split == "train" or is_held_out_scene(scene):
            return scene


def is_held_out_scene(scene: Scene) -> bool:
    """Whether a scene has a held-out combination."""
    return has_held_out_combination(
        [item.class_id for item in scene.items], [item.cell for item in scene.items], scene.ground
    )


def _sample_scene(
    rng: random.Random, is_training: bool, num_things: int | None, thing_filter: ThingFilter | None
) -> Scene:
    ground, is_night = rng.choice(tuple(GROUND_RGB)), rng.random() < NIGHT_PROBABILITY
    num_items = (
        num_things
        or rng.choices(tuple(PROBABILITY_BY_NUM_THINGS), tuple(PROBABILITY_BY_NUM_THINGS.values()))[0]
    )
    free_cells = list(range(len(POSITION_PHRASES)))
    used_class_ids: set[int] = set()
    items: list[SceneItem] = []
    for count in _group_sizes(rng, num_items):
        class_id = _choose_class(rng, is_training, thing_filter, ground, is_night, count, used_class_ids)
        used_class_ids.add(class_id)
        for _ in range(count):
            cell = rng.choice(
                [
                    cell
                    for cell in free_cells
                    if not (is_training and cell == HELD_OUT_CELL_BY_CLASS[class_id])
                ]
            )
            free_cells.remove(cell)
            items.append(_place_item(rng, class_id, cell))
    items.sort(key=lambda item: item.cell)
    return Scene(ground, rng.choice(TEXTURES), is_night, tuple(items), rng.randrange(NUM_SEEDS))


def _group_sizes(rng: random.Random, num_items: int) -> list[int]:
    """Random counts of the different things: often all one, else two or three of the first."""
    if num_items == 1 or rng.random() > REPEAT_PROBABILITY:
        return [1] * num_items
    same = 3 if num_items > 2 and rng.random() < 0.35 else 2
    return [same] + [1] * (num_items - same)


def _choose_class(
    rng: random.Random,
    is_training: bool,
    thing_filter: ThingFilter | None,
    ground: str,
    is_night: bool,
    count: int,
    used_class_ids: set[int],
) -> int:
    wants_shape = thing_filter == "shape" or (thing_filter is None and rng.random() < SHAPE_PROBABILITY)
    while True:
        class_id = (
            rng.randrange(FIRST_SHAPE_ID, NUM_CLASSES) if wants_shape else rng.randrange(1, FIRST_SHAPE_ID)
        )
        is_held_out = (
            HELD_OUT_GROUND_BY_CLASS[class_id] == ground
            or class_id in HELD_OUT_SHAPES
            or (class_id, count) in HELD_OUT_COUNTS
        )
        if (
            class_id not in used_class_ids
            and not (is_training and is_held_out)
            and is_visible(class_id, ground, is_night)
        ):
            return class_id


def _place_item(rng: random.Random, class_id: int, cell: int) -> SceneItem:
    size: Size = "large" if rng.random() < 0.5 else "small"
    max_offset = MAX_OFFSET_BY_SIZE[size]
    is_mirrored, angle = rng.random() < 0.5, rng.choice(ANGLES)
    return SceneItem(
        class_id,
        cell,
        size,
        is_mirrored,
        angle,
        rng.randint(-max_offset, max_offset),
        rng.randint(-max_offset, max_offset),
    )


def cell_class_ids(scene: Scene) -> np.ndarray:
    """The class id of each of the nine cells in reading order, 0 where it is empty."""
    class_ids = np.zeros(len(POSITION_PHRASES), dtype=np.int64)
    for item in scene.items:
        class_ids[item.cell] = item.class_id
    return class_ids
