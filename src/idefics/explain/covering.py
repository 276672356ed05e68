"""Covers parts of a preprocessed picture: the part is blurred in every frame that shows it, other frames are shared.

A part is a mask over the cells of a grid that is laid over the whole picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from idefics.config import ImageProcessorConfig
from idefics.lazy import cached_property
from idefics.prompt import PreprocessedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.float32]
    CellMask = NDArray[np.bool_]

BLUR_SIGMA = 1 / 6  # standard deviation of the blur, as a share of the picture's width and height
GRAY = 127  # of 255, the value of the plain picture that stands for "no picture"


class CoverablePicture:
    """A picture of a prompt of which parts can be covered.

    A part is blurred, not blackened: a black rectangle is a new object, to which a model answers.

    Args:
        image: the picture as it is in the prompt; its last frame shows the whole picture.
    """

    def __init__(self, image: PreprocessedImage) -> None:
        self.image = image
        self._blurred_tiles: dict[int, Frame] = {}

    def cover(self, cells: CellMask) -> PreprocessedImage:
        """Returns the picture with the marked cells blurred.

        Args:
            cells: (rows, columns), true where the picture is covered.

        Returns:
            A picture of the same tiles, whose `base` is the uncovered one. Frames that show no covered cell are the
            same arrays.
        """
        digest = hashlib.sha256(f"{self.image.content_hash} covered {cells.shape} ".encode())
        digest.update(np.packbits(cells).tobytes())
        frames = tuple(self._cover_frame(index, cells) for index in range(len(self.image.frames)))
        return replace(self.image, frames=frames, content_hash=digest.hexdigest(), base=self.image)

    def _cover_frame(self, index: int, cells: CellMask) -> Frame:
        """A frame with its part of the marked cells blurred; the same array if there is none."""
        frame: Frame = self.image.frames[index]
        left, top, right, bottom = self._extent(index)
        rows = _cell_indices(top, bottom, frame.shape[1], cells.shape[0])
        columns = _cell_indices(left, right, frame.shape[2], cells.shape[1])
        covered = cells[rows[:, None], columns]
        if not covered.any():
            return frame
        return np.where(covered, self._blurred_frame(index), frame)

    def _extent(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a frame in the picture, whose width and height are 1."""
        if index == len(self.image.frames) - 1:
            return 0.0, 0.0, 1.0, 1.0
        row, column = divmod(index, self.image.columns)
        rows, columns = self.image.rows, self.image.columns
        return column / columns, row / rows, (column + 1) / columns, (row + 1) / rows

    def _blurred_frame(self, index: int) -> Frame:
        """The frame of the blurred picture; for a tile an enlarged part of the whole, which has no detail to lose."""
        if index == len(self.image.frames) - 1:
            return self._blurred_whole
        if index not in self._blurred_tiles:
            height, width = self.image.frames[index].shape[1:]
            left, top, right, bottom = self._extent(index)
            rows = _interpolation_matrix(top, bottom, height, self._blurred_whole.shape[1])
            columns = _interpolation_matrix(left, right, width, self._blurred_whole.shape[2])
            tile: Frame = (rows @ self._blurred_whole @ columns.T).astype(np.float32)
            self._blurred_tiles[index] = tile
        return self._blurred_tiles[index]

    @cached_property
    def _blurred_whole(self) -> Frame:
        """The whole picture, blurred by a Gaussian; at its edges the kernel is cut off and normalised."""
        whole: Frame = self.image.frames[-1]
        rows, columns = _gaussian_matrix(whole.shape[1]), _gaussian_matrix(whole.shape[2])
        blurred: Frame = (rows @ whole @ columns.T).astype(np.float32)
        return blurred


def gray_picture(image: PreprocessedImage, config: ImageProcessorConfig) -> PreprocessedImage:
    """A plain mid-grey picture of the same tiles, which stands for "no picture": the prompt keeps its length."""
    values = (GRAY * config.rescale_factor - np.array(config.mean)) / np.array(config.std)
    frames = tuple(
        np.broadcast_to(values.astype(np.float32)[:, None, None], frame.shape) for frame in image.frames
    )
    shapes = [frame.shape for frame in frames]
    digest = hashlib.sha256(f"gray {values!r} {shapes} {image.rows} {image.columns}".encode())
    return replace(image, frames=frames, content_hash=digest.hexdigest(), note="", base=None)


def _cell_indices(start: float, end: float, num_pixels: int, num_cells: int) -> NDArray[np.int64]:
    """(num_pixels,): the cell of each pixel along one axis of a frame that reaches from `start` to `end`."""
    centers = start + (np.arange(num_pixels) + 0.5) / num_pixels * (end - start)
    return np.minimum((centers * num_cells).astype(np.int64), num_cells - 1)


def _gaussian_matrix(size: int) -> NDArray[np.float32]:
    """(size, size): blurs one axis; each row is a Gaussian around its pixel that adds up to 1."""
    positions = np.arange(size, dtype=np.float64)
    weights = np.exp(-0.5 * ((positions[:, None] - positions) / (BLUR_SIGMA * size)) ** 2)
    matrix: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return matrix


def _interpolation_matrix(start: float, end: float, num_pixels: int, size: int) -> NDArray[np.float32]:
    """(num_pixels, size): linear interpolation of the pixels from `start` to `end` of an axis of `size` pixels."""
    centers = start + (np.arange(num_pixels) + 0.5) / num_pixels * (end - start)
    positions = np.clip(centers * size - 0.5, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size)))
    matrix: NDArray[np.float32] = weights.astype(np.float32)
    return matrix
