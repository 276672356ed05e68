"""Plans how one picture is resized and cut into frames, from its width and height alone.

Tiles are the parts that a picture is cut into. Frames are the inputs of the vision tower: the tiles and the whole
picture, or only the whole picture. The number of tokens follows from the plan, before any pixel is resized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from idefics.config import ImageProcessorConfig
from idefics.messages import ImageDetail

MAX_EDGE = 4096  # Idefics 3's processor never resizes to more than this

Size = tuple[int, int]  # width and height in pixels
Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How one picture is resized and cut into frames.

    Attributes:
        rows, columns: the grid that the picture is cut into; (0, 0) where it stays whole.
        resize_steps: sizes that the whole picture is resized to, one after another, before it is cut.
        frame_sizes: sizes that the frames are then resized to: the tiles row by row, the whole picture last.
    """

    rows: int
    columns: int
    resize_steps: tuple[Size, ...]
    frame_sizes: tuple[Size, ...]


def plan_tiles(
    width: int, height: int, config: ImageProcessorConfig, image_detail: ImageDetail | None = None
) -> TilePlan:
    """Plans how a picture of `width` x `height` pixels is resized and cut into frames.

    Args:
        image_detail: may reduce the number of tiles; None: as many as the checkpoint makes.
    """
    if image_detail is not None:
        config = apply_image_detail(width, height, config, image_detail)
    rows, columns = compute_tile_grid(width, height, config)
    if config.shortest_edge is not None:
        boxes = [*tile_boxes(width, height, rows, columns), (0, 0, width, height)]
        sizes = tuple(
            clamp_frame_size(right - left, bottom - top, config) for left, top, right, bottom in boxes
        )
        return TilePlan(rows, columns, () if rows else sizes, sizes)
    side = config.frame_size
    resize_steps = []
    if config.longest_edge is not None:
        resize_steps.append(size_with_longest_edge(width, height, config.longest_edge))
    resize_steps.append((columns * side, rows * side) if rows else (side, side))
    return TilePlan(rows, columns, tuple(resize_steps), ((side, side),) * (rows * columns + 1))


def tile_boxes(width: int, height: int, rows: int, columns: int) -> list[Box]:
    """The (left, top, right, bottom) in pixels of each tile, row by row; their sizes differ by at most one pixel."""
    return [
        (
            width * column // columns,
            height * row // rows,
            width * (column + 1) // columns,
            height * (row + 1) // rows,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def apply_image_detail(
    width: int, height: int, config: ImageProcessorConfig, image_detail: ImageDetail
) -> ImageProcessorConfig:
    """The checkpoint's settings, changed so that a picture of this size gets no more tiles than `image_detail` says."""
    if not config.do_image_splitting or config.longest_edge is None:
        return config
    unsplit_config = replace(config, do_image_splitting=False)
    if image_detail.detail == "low":
        return unsplit_config
    # The tiles and the whole picture are at most `max_tiles` frames.
    tile_count_limit = math.inf if image_detail.max_tiles is None else image_detail.max_tiles
    if config.shortest_edge is not None:
        # Splitting adds detail only if the whole picture is downscaled.
        is_small = max(width, height) <= config.longest_edge
        num_tiles = math.prod(compute_tile_grid(width, height, config))
        is_unsplit = (image_detail.detail == "auto" and is_small) or num_tiles >= tile_count_limit
        return unsplit_config if is_unsplit else config
    tile_size, longest_edge = config.frame_size, config.longest_edge
    if image_detail.detail == "auto":  # to the nearest number of tiles: enlarged by a third at most
        longest_edge = min(longest_edge, max(1, round(max(width, height) / tile_size)) * tile_size)
    smaller_config = replace(config, longest_edge=longest_edge)
    while math.prod(compute_tile_grid(width, height, smaller_config)) >= tile_count_limit:
        longest_edge = math.ceil(longest_edge / tile_size - 1) * tile_size
        smaller_config = replace(config, longest_edge=longest_edge)
    return smaller_config


def compute_tile_grid(width: int, height: int, config: ImageProcessorConfig) -> tuple[int, int]:
    """The grid of tiles of a picture of this size: (rows, columns); (0, 0) if it fits one tile or is not split."""
    if not config.do_image_splitting:
        return 0, 0
    if config.shortest_edge is not None:
        return (
            (2, 2) if min(width, height) > 1 else (0, 0)
        )  # an image 1 pixel wide or high cannot be quartered
    if config.longest_edge is not None:
        width, height = size_with_longest_edge(width, height, config.longest_edge)
    width, height = size_scaled_up_to_tiles(width, height, config.frame_size)
    rows, columns = height // config.frame_size, width // config.frame_size
    return (rows, columns) if rows * columns > 1 else (0, 0)


def clamp_frame_size(width: int, height: int, config: ImageProcessorConfig) -> Size:
    """The size of a frame of `width` x `height` pixels, brought within `longest_edge` and `shortest_edge` of `config`.

    The longest edge is bounded first, keeping the aspect; then each edge is made at least the shortest.
    """
    assert config.longest_edge is not None
    assert config.shortest_edge is not None
    if max(width, height) > config.longest_edge:
        width, height = _scale_longest_edge(width, height, config.longest_edge)
    return max(width, config.shortest_edge), max(height, config.shortest_edge)


def _scale_longest_edge(width: int, height: int, target_edge: int) -> Size:
    """The size whose longer edge is `target_edge`; the shorter keeps the aspect ratio and is rounded down."""
    aspect = width / height
    return (
        (target_edge, int(target_edge / aspect))
        if width >= height
        else (int(target_edge * aspect), target_edge)
    )


def size_with_longest_edge(width: int, height: int, target_edge: int) -> Size:
    """The size whose longer edge is `target_edge`; the shorter keeps the aspect ratio and is rounded up to even.

    Neither edge is longer than `MAX_EDGE` or shorter than 1.
    """
    is_wide = width >= height
    width, height = _scale_longest_edge(width, height, target_edge)
    if is_wide:
        height += height % 2
    else:
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    if max(width, height) > MAX_EDGE:
        width, height = _scale_longest_edge(width, height, MAX_EDGE)
    return max(width, 1), max(height, 1)


def size_scaled_up_to_tiles(width: int, height: int, tile_size: int) -> Size:
    """The size whose longer edge is the next multiple of `tile_size`.

    The shorter edge keeps the aspect ratio and is then rounded up to a multiple too.
    """
    longest_edge = math.ceil(max(width, height) / tile_size) * tile_size
    width, height = _scale_longest_edge(width, height, longest_edge)
    return math.ceil(width / tile_size) * tile_size, math.ceil(height / tile_size) * tile_size
