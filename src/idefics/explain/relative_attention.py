"""Approximate maps from one pass: which image tokens a word attends to when it is predicted, more than other text does.

Relative attention, after "MLLMs Know Where to Look" (arXiv 2502.17422), which compares the attention of a question with
that of a neutral one. Here the other text of the same prompt is the comparison, so that one pass is enough. The mean is
over all layers and heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from idefics.errors import BadSetting
from idefics.explain.occlusion import EvidenceMethod, Steps, TokenEvidence
from idefics.generation.loading import LoadedModel
from idefics.prompt import PreprocessedImage


def has_token_grid(model: LoadedModel) -> bool:
    """Whether a model's image tokens lie in a grid over each frame, as `RelativeAttention` needs."""
    return model.processor.prompt_format.image_tokens == "inline_tiles"


@dataclass(frozen=True)
class RelativeAttention(EvidenceMethod):
    """One explanation by relative attention.

    Raises:
        BadSetting: the model's image tokens lie in no grid.
    """

    def __post_init__(self) -> None:
        if not has_token_grid(self.model):
            raise BadSetting(
                "method is 'fast', but this model has no image tokens that lie in a grid over the picture: use "
                "method='occlusion', or a model of the families Idefics3 and SmolVLM"
            )

    @property
    def num_passes(self) -> int:
        """One pass for the answer or each label, and one each to score with and without the pictures."""
        return len(self.prompt.continuations) + 2

    def steps(self) -> Steps:
        """Yields requests as `Occlusion.steps`, an empty list before each pass that it makes itself, and the result.

        The values of the maps are shares of attention.

        Raises:
            RequestTimeout: the deadline is over.
        """
        images, full_scores, gray_scores = yield from self.pictures_and_scores()
        positions = self.prompt.prompt.image_token_positions[-self.num_pictures :]
        keys = [*chain.from_iterable(positions)]
        rows = []
        for continuation in self.prompt.continuations:
            yield []  # so that the caller can end the work here
            rows.append(self._attention(continuation, keys))
        ends = np.cumsum([len(one) for one in positions])[:-1]
        maps = [
            _arrange(values, image)
            for values, image in zip(np.split(np.concatenate(rows), ends, axis=1), images, strict=True)
        ]
        yield TokenEvidence(full_scores, gray_scores, maps, self.num_passes, self.num_passes)

    def _attention(self, continuation: Sequence[int], keys: Sequence[int]) -> NDArray[np.float64]:
        """(T, L): the attention of a continuation's tokens to L image tokens, above that of the text before them."""
        if self.deadline is not None:
            self.deadline.raise_if_expired()
        prompt = self.prompt.prompt
        recorded = self.model.engine.attention(prompt, continuation[:-1], keys).double().numpy()
        # The token before a word predicts it: the attention of the prompt's last token is that of the first word.
        num_before = len(prompt) - keys[-1] - 2
        common = recorded[:num_before].mean(axis=0) if num_before else np.zeros(len(keys))
        above: NDArray[np.float64] = np.maximum(recorded[num_before:] - common, 0)
        return above


def _arrange(values: NDArray[np.float64], image: PreprocessedImage) -> NDArray[np.float64]:
    """Arranges values at the image tokens of a picture as they lie in it.

    Args:
        values: (T, F*M) for F frames of M tokens, row by row in each frame.

    Returns:
        (T, rows, columns): of the tiles where the picture was split, else of the one frame.
    """
    num_frames = len(image.frames)
    side = round((values.shape[1] // num_frames) ** 0.5)
    frames = values.reshape(len(values), num_frames, side, side)
    if num_frames == 1:
        return frames[:, 0]
    tiles = frames[:, :-1].reshape(len(values), image.rows, image.columns, side, side)
    grid = tiles.transpose(0, 1, 3, 2, 4).reshape(len(values), image.rows * side, image.columns * side)
    # What is attended to in the frame of the whole picture is shared out over its place in the tiles.
    rows = np.arange(grid.shape[1]) * side // grid.shape[1]
    columns = np.arange(grid.shape[2]) * side // grid.shape[2]
    whole = frames[:, -1][:, rows[:, None], columns]
    arranged: NDArray[np.float64] = grid + whole / (image.rows * image.columns)
    return arranged
