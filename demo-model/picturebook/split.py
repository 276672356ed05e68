"""The combinations that are held out from training, so that evaluation measures generalisation."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from .things import (
    CATALOG,
    COLOR_RGB,
    FIRST_SHAPE_ID,
    GROUND_RGB,
    NUM_CLASSES,
    POSITION_PHRASES,
    SHAPES,
    shape_and_color,
)

NUM_HELD_OUT_SHAPES = 4


def _stable_hash(text: str) -> int:
    """A hash that is equal on every machine and in every run, unlike Python's `hash`."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def _choose_held_out_shapes() -> frozenset[int]:
    """Four coloured shapes with different shapes and colours, so that each shape and colour occurs in training."""
    hashed_order = sorted(
        range(FIRST_SHAPE_ID, NUM_CLASSES), key=lambda what: _stable_hash(f"pair {CATALOG[what].name}")
    )
    held_out_ids: list[int] = []
    for class_id in hashed_order:
        shape, color = shape_and_color(class_id)
        used_words = {word for other in held_out_ids for word in shape_and_color(other)}
        if shape not in used_words and color not in used_words:
            held_out_ids.append(class_id)
    return frozenset(held_out_ids[: min(NUM_HELD_OUT_SHAPES, len(SHAPES), len(COLOR_RGB))])


_GROUND_NAMES = tuple(GROUND_RGB)
HELD_OUT_CELL_BY_CLASS = tuple(
    _stable_hash(f"place {thing.name}") % len(POSITION_PHRASES) for thing in CATALOG
)
HELD_OUT_GROUND_BY_CLASS = tuple(
    _GROUND_NAMES[_stable_hash(f"ground {thing.name}") % len(GROUND_RGB)] for thing in CATALOG
)
HELD_OUT_SHAPES = _choose_held_out_shapes()
HELD_OUT_COUNTS = frozenset(
    (what, count)
    for what in range(1, NUM_CLASSES)
    for count in (2, 3)
    if _stable_hash(f"count {count} {CATALOG[what].name}") % 10 == 0
)


def has_held_out_combination(class_ids: Sequence[int], cells: Sequence[int], ground: str) -> bool:
    """Whether a scene has at least one held-out combination."""
    return (
        any(HELD_OUT_CELL_BY_CLASS[what] == cell for what, cell in zip(class_ids, cells, strict=True))
        or any(HELD_OUT_GROUND_BY_CLASS[what] == ground or what in HELD_OUT_SHAPES for what in class_ids)
        or any(counted in HELD_OUT_COUNTS for counted in Counter(class_ids).items())
    )
