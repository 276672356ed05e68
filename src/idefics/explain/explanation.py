"""`Explanation`: attribution maps of an answer's words, or of the labels of a ranking."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from idefics.errors import BadSetting
from idefics.explain.occlusion import TokenEvidence
from idefics.explain.rendering import Panel, draw_panels
from idefics.explain.words import TokenGroup

if TYPE_CHECKING:
    import PIL.Image
    from numpy.typing import NDArray

    HeatMap = NDArray[np.float32]

Method = Literal["occlusion", "fast"]
UNIT_BY_METHOD: dict[Method, str] = {"occlusion": "nats", "fast": "share of attention (approximation)"}


@dataclass(frozen=True, eq=False)
class ExplainedWord:
    """One word of an answer, or one label, and how much each part of the pictures carried it.

    Attributes:
        text: the word or the label.
        tokens: its token ids.
        log_probability: natural logarithm of its probability.
        log_probability_without_picture: the same for plain grey pictures of the same size.
        cells: for each picture (rows, columns), the heat of each cell of the map, in the explanation's unit.
        sizes: (width, height) of each picture in pixels.
    """

    text: str
    tokens: tuple[int, ...]
    log_probability: float
    log_probability_without_picture: float
    cells: tuple[HeatMap, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def heat(self) -> HeatMap:
        """(H, W): the heat at each pixel of the first picture; see `heat_of`."""
        return self.heat_of(0)

    def heat_of(self, picture: int) -> HeatMap:
        """(H, W): the heat at each pixel of a picture, interpolated between cells; its unit is the explanation's."""
        import PIL.Image

        cells = PIL.Image.fromarray(self.cells[picture])
        return np.array(cells.resize(self.sizes[picture], PIL.Image.Resampling.BILINEAR))

    @property
    def words_share(self) -> float:
        """The share of the words alone, 0 to 1: the probability without picture over that with it; 1: no less.

        exp(log_probability_without_picture - log_probability), at most 1.
        """
        return math.exp(min(0.0, self.log_probability_without_picture - self.log_probability))


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much each part of the pictures carried each word of an answer, or each label of a ranking.

    Attributes:
        answer: the answer, or the best label.
        words: the words in their order, or the labels, the most probable first.
        is_ranking: whether `words` are labels.
        method: "occlusion" or "fast".
        pictures: the pictures that the maps are laid over: those of the call, or the frames of its video.
        num_passes: how many passes of the model were made so far.
        max_passes: how many there are in the end.
    """

    answer: str
    words: tuple[ExplainedWord, ...]
    is_ranking: bool
    method: Method
    pictures: tuple[PIL.Image.Image, ...]
    num_passes: int
    max_passes: int

    @property
    def unit(self) -> str:
        """The unit of the heat: "nats" of log-probability lost, or "share of attention (approximation)"."""
        return UNIT_BY_METHOD[self.method]

    @property
    def total(self) -> ExplainedWord:
        """The answer as one word, whose heat is the sum of the words' heat; of a ranking the best label."""
        return self.words[0] if self.is_ranking else _join_words(self.answer, self.words)

    @property
    def heat(self) -> HeatMap:
        """(H, W): the heat of `total` at each pixel of the first picture."""
        return self.total.heat

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as numbers, texts, lists and dicts. Heat is given by cell, in `unit`."""
        return {
            "answer": self.answer,
            "method": self.method,
            "unit": self.unit,
            "is_ranking": self.is_ranking,
            "num_passes": self.num_passes,
            "max_passes": self.max_passes,
            "pictures": [{"width": picture.width, "height": picture.height} for picture in self.pictures],
            "words": [
                {
                    "text": word.text,
                    "tokens": list(word.tokens),
                    "log_probability": round(word.log_probability, 6),
                    "log_probability_without_picture": round(word.log_probability_without_picture, 6),
                    "words_share": round(word.words_share, 6),
                    "heat": [np.round(cells.astype(np.float64), 4).tolist() for cells in word.cells],
                }
                for word in self.words
            ],
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def save(self, path: str | os.PathLike[str], words: Literal["all"] | Sequence[int] | None = None) -> None:
        """Draws the heat over the pictures and writes a picture file, with a legend that names the unit.

        Orange parts carried the words, blue parts spoke against them.

        Args:
            path: the file; its suffix says the format, such as .png.
            words: None: one map, of `total`; "all": a map of each word or label too; or the indices of some of `words`.

        Raises:
            BadSetting: no word has such an index, or the suffix names no format.
            OSError: the file cannot be written.
        """
        import PIL.Image

        if Path(path).suffix.lower() not in PIL.Image.registered_extensions():
            raise BadSetting(f"{path} does not end in the suffix of a picture format: use .png")
        if words is None or words == "all":
            further = self.words if words and (self.is_ranking or len(self.words) > 1) else ()
            chosen = [*([] if self.is_ranking and words else [self.total]), *further]
        else:
            if wrong := [index for index in words if not 0 <= int(index) < len(self.words)]:
                raise BadSetting(f"words names {wrong[0]}; the words are 0 to {len(self.words) - 1}")
            chosen = [self.words[int(index)] for index in words]
        panels = [
            Panel(picture, word.cells[index], word.text, word.log_probability)
            for word in chosen
            for index, picture in enumerate(self.pictures)
        ]
        draw_panels(panels, len(self.pictures), self.unit).save(path)


def build_explanation(
    evidence: TokenEvidence,
    groups: Sequence[TokenGroup],
    answer: str,
    pictures: Sequence[PIL.Image.Image],
    *,
    is_ranking: bool,
    method: Method,
) -> Explanation:
    """Makes the explanation of the words or labels from the evidence about their tokens.

    Args:
        answer: the answer; ignored for a ranking, whose answer is the best label.
    """
    sizes = tuple(picture.size for picture in pictures)
    words = [
        ExplainedWord(
            group.text,
            group.ids,
            float(group.sum(evidence.log_probabilities)),
            float(group.sum(evidence.without_picture)),
            tuple(group.sum(maps).astype(np.float32) for maps in evidence.maps),
            sizes,
        )
        for group in groups
    ]
    if is_ranking:
        words.sort(key=lambda word: -word.log_probability)
        answer = words[0].text
    return Explanation(
        answer,
        tuple(words),
        is_ranking,
        method,
        tuple(pictures),
        evidence.num_passes,
        evidence.max_passes,
    )


def _join_words(text: str, words: Sequence[ExplainedWord]) -> ExplainedWord:
    """All words as one: log-probabilities and heat add up."""
    return ExplainedWord(
        text,
        tuple(token for word in words for token in word.tokens),
        math.fsum(word.log_probability for word in words),
        math.fsum(word.log_probability_without_picture for word in words),
        tuple(np.sum(cells, axis=0) for cells in zip(*(word.cells for word in words), strict=True)),
        words[0].sizes,
    )
