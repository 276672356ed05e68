"""Approximate maps from one pass: how strongly each image token predicts a word already (token activation maps).

After "Token Activation Map to Visually Explain Multimodal LLMs" (arXiv 2506.23270): the logit of a word's token is read
at every image token of the last layer. What earlier words activate as well is subtracted, and a filter by rank removes
single outliers. Here earlier words are weighted equally, with one least-squares factor for their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from idefics.engine.request import Deadline, Request
from idefics.errors import BadSetting
from idefics.explain.covering import gray_picture
from idefics.explain.occlusion import TokenEvidence
from idefics.generation.loading import LoadedModel
from idefics.prompt import PreprocessedImage, ScoringPrompt

NUM_PASSES = 3  # the hidden states, and the scores with and without the pictures

Map = NDArray[np.float64]  # (rows, columns)


@dataclass(frozen=True)
class TokenActivation:
    """One explanation by token activation maps.

    Attributes:
        model: computes hidden states and scores; its image tokens lie in a grid over each frame.
        prompt: the prompt and the continuations whose T tokens are explained.
        num_pictures: how many of the last pictures of the prompt are explained.
        is_ranking: whether the continuations are labels: what all have in common is then subtracted.
        deadline: when the explanation fails with RequestTimeout; None: never.

    Raises:
        BadSetting: the model's image features have no places in the picture.
    """

    model: LoadedModel
    prompt: ScoringPrompt
    num_pictures: int
    is_ranking: bool
    deadline: Deadline | None = None

    def __post_init__(self) -> None:
        if self.model.processor.prompt_format.image_tokens != "inline_tiles":
            raise BadSetting(
                "method is 'fast', but this model's image features have no places in the picture: use "
                "method='occlusion', or a model of the families Idefics3 and SmolVLM"
            )

    def run(self) -> TokenEvidence:
        """Computes the maps.

        Raises:
            IdeficsError: as `Engine.submit`, or RequestTimeout at the deadline.
        """
        prompt, continuations = self.prompt
        ids = list(chain.from_iterable(continuations))
        first = len(prompt.pictures) - self.num_pictures
        logits = self.model.engine.logits(prompt, ids).double().cpu().numpy()  # (N, T)
        raw_maps = [
            _arrange(logits[list(positions)].T, image)
            for image, positions in zip(
                prompt.pictures[first:], prompt.image_token_positions[first:], strict=True
            )
        ]
        maps = [_remove_interference(one, is_ranking=self.is_ranking) for one in raw_maps]
        gray = [gray_picture(image, self.model.processor.image_config) for image in prompt.pictures[first:]]
        full_scores, gray_scores = (self._score(images) for images in (prompt.pictures[first:], tuple(gray)))
        return TokenEvidence(full_scores, gray_scores, maps, NUM_PASSES, NUM_PASSES)

    def _score(self, images: Sequence[PreprocessedImage]) -> NDArray[np.float64]:
        """(T,) log-probabilities of the continuations' tokens with these pictures."""
        prompt, continuations = self.prompt
        request = Request(
            prompt.with_last_pictures(images), continuations=continuations, deadline=self.deadline
        )
        handle = self.model.engine.submit(request, wait=True).result()
        return np.array([*chain.from_iterable(handle.continuation_logprobs)])


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
    return tiles.transpose(0, 1, 3, 2, 4).reshape(len(values), image.rows * side, image.columns * side)


def _remove_interference(maps: NDArray[np.float64], *, is_ranking: bool) -> NDArray[np.float64]:
    """Subtracts from each token's map what the other tokens activate too, and filters it; nothing is below 0.

    Args:
        maps: (T, rows, columns) logits.
        is_ranking: subtract the mean of all maps, rather than of those of earlier tokens.
    """
    centered = maps - np.median(maps, axis=(1, 2), keepdims=True)
    results = []
    for index, own in enumerate(centered):
        others = centered if is_ranking else centered[:index]
        common = np.mean(others, axis=0) if len(others) else np.zeros_like(own)
        power = float((common**2).sum())
        factor = 1.0 if is_ranking else max(0.0, float((own * common).sum()) / (power or 1.0))
        results.append(_rank_filter(np.maximum(own - factor * common, 0)))
    return np.array(results)


def _rank_filter(values: Map) -> Map:
    """Replaces each value by a mean of its 3x3 neighbours in order of rank, weighted by a Gaussian around the median."""
    padded = np.pad(values, 1, mode="edge")
    rows, columns = values.shape
    neighbors = np.stack(
        [padded[down : down + rows, across : across + columns] for down in range(3) for across in range(3)]
    )
    ranked = np.sort(neighbors, axis=0)
    weights = np.exp(-0.5 * ((np.arange(9) - 4) / 2.0) ** 2)
    result: Map = np.tensordot(weights / weights.sum(), ranked, axes=1)
    return result
