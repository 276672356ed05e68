"""How large the frames of a picture are and how many: arithmetic on widths, heights and plans."""

from __future__ import annotations

import math
from dataclasses import replace

from idefics.config import ImagePlan
from idefics.messages import ImageDetail

LONGEST_EDGE = 4096  # Idefics 3's processor never resizes to more than this


def plan_for(width: int, height: int, plan: ImagePlan, look: ImageDetail) -> ImagePlan:
    """The checkpoint's plan, changed as far as a look at a picture of this size asks for less than it."""
    whole = replace(plan, splitting=False)
    if not plan.splitting or plan.longest is None or (look.detail == "high" and look.max_tiles is None):
        return plan
    if look.detail == "low":
        return whole
    if plan.shortest is not None:  # quarters, which show more than the whole only where it is made smaller
        shows_more = look.detail == "high" or max(width, height) > plan.longest
        return plan if shows_more and _frames(width, height, plan) <= _most(look) else whole
    longest = plan.longest
    if look.detail == "auto":  # to the nearest number of tiles: enlarged by a third at most
        longest = min(longest, max(1, round(max(width, height) / plan.side)) * plan.side)
    smaller = replace(plan, longest=longest)
    while _frames(width, height, smaller) > _most(look):
        longest = math.ceil(longest / plan.side - 1) * plan.side
        smaller = replace(plan, longest=longest)
    return smaller


def _most(look: ImageDetail) -> float:
    return math.inf if look.max_tiles is None else look.max_tiles


def _frames(width: int, height: int, plan: ImagePlan) -> int:
    rows, columns = grid(width, height, plan)
    return rows * columns + 1


def grid(width: int, height: int, plan: ImagePlan) -> tuple[int, int]:
    """Rows and columns of tiles; (0, 0) where the picture stays whole: it fits one tile or is not split."""
    if not plan.splitting:
        return 0, 0
    if plan.shortest is not None:
        return (2, 2) if min(width, height) > 1 else (0, 0)  # a line of pixels has no quarters
    if plan.longest is not None:
        width, height = longest_edge(width, height, plan.longest)
    width, height = tile_multiple(width, height, plan.side)
    rows, columns = height // plan.side, width // plan.side
    return (rows, columns) if rows * columns > 1 else (0, 0)


def native_size(width: int, height: int, plan: ImagePlan) -> tuple[int, int]:
    """(width, height) of a frame of its own size: `longest` bounds it, then each edge is at least `shortest`."""
    assert plan.longest is not None
    assert plan.shortest is not None
    aspect = width / height
    if width >= height and width > plan.longest:
        width, height = plan.longest, int(plan.longest / aspect)
    elif height > width and height > plan.longest:
        width, height = int(plan.longest * aspect), plan.longest
    return max(width, plan.shortest), max(height, plan.shortest)


def longest_edge(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height), the longer edge exactly `longest`; the shorter keeps the aspect and is made even."""
    aspect = width / height
    if width >= height:
        width, height = longest, int(longest / aspect)
        height += height % 2
    else:
        width, height = int(longest * aspect), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    if max(width, height) <= LONGEST_EDGE:
        return width, height
    aspect = width / height
    if width >= height:
        return LONGEST_EDGE, max(int(LONGEST_EDGE / aspect), 1)
    return max(int(LONGEST_EDGE * aspect), 1), LONGEST_EDGE


def tile_multiple(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) rounded up to multiples of `side`, the shorter from the longer's new length."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / aspect) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * aspect) / side) * side, height
