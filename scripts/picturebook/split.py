"""Which combinations training never shows, so that evaluation can tell learning from memory."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from .things import CATALOG, CELL_CLASSES, COLORS, FIRST_SHAPE, GROUNDS, PLACES, SHAPES, shape_and_color

HELD_PAIRS_WANTED = 4


def _number(text: str) -> int:
    """A number that is the same on every machine and in every run, unlike Python's own hash."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def _held_pairs() -> frozenset[int]:
    """Four coloured shapes, no two of one shape or colour, so that each shape and colour stays well known."""
    by_number = sorted(
        range(FIRST_SHAPE, CELL_CLASSES), key=lambda what: _number(f"pair {CATALOG[what].name}")
    )
    held: list[int] = []
    for what in by_number:
        shape, color = shape_and_color(what)
        taken = {word for other in held for word in shape_and_color(other)}
        if shape not in taken and color not in taken:
            held.append(what)
    return frozenset(held[: min(HELD_PAIRS_WANTED, len(SHAPES), len(COLORS))])


_GROUND_NAMES = tuple(GROUNDS)
HELD_PLACE = tuple(_number(f"place {thing.name}") % len(PLACES) for thing in CATALOG)
HELD_GROUND = tuple(_GROUND_NAMES[_number(f"ground {thing.name}") % len(GROUNDS)] for thing in CATALOG)
HELD_PAIRS = _held_pairs()
HELD_COUNTS = frozenset(
    (what, count)
    for what in range(1, CELL_CLASSES)
    for count in (2, 3)
    if _number(f"count {count} {CATALOG[what].name}") % 10 == 0
)


def is_held_out(whats: Sequence[int], cells: Sequence[int], ground: str) -> bool:
    """Whether a scene shows at least one combination that training never shows."""
    return (
        any(HELD_PLACE[what] == cell for what, cell in zip(whats, cells, strict=True))
        or any(HELD_GROUND[what] == ground or what in HELD_PAIRS for what in whats)
        or any(counted in HELD_COUNTS for counted in Counter(whats).items())
    )
