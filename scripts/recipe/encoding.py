"""From a sample of the picture-book world to token ids, what of them is learned, and what each token sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from picturebook import Sample, Scene

from .checkpoints import FAKE, GLOBAL, IMAGE, TURN_END


@dataclass(frozen=True)
class Encoded:
    """One row: ids, which of them are answers, the latest picture of each (-1: none), and the pictures."""

    ids: np.ndarray
    learned: np.ndarray
    sees: np.ndarray
    scenes: tuple[Scene, ...]


class Encoder:
    """Renders samples as the released processors do; held equal to `idefics.processing` by a test."""

    def __init__(self, tokenizer: Tokenizer, places: int) -> None:
        """`places` is how many positions a picture takes in the text; 0 where it is read beside the text."""
        self.tokenizer, self.beside = tokenizer, places == 0
        self.image = tokenizer.token_to_id(IMAGE)
        self.mark = f"{FAKE}{IMAGE}{FAKE}" if self.beside else f"{FAKE}{GLOBAL}{IMAGE * places}{FAKE}"
        self.start = "<s>" if self.beside else "<|im_start|>"
        self.images = max(places, 1)

    def __call__(self, sample: Sample) -> Encoded:
        spans = self._raw(sample) if sample.raw else self._chat(sample)
        encoding = self.tokenizer.encode("".join(text for text, _ in spans), add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        flags = np.concatenate([np.full(len(text), flag) for text, flag in spans])
        starts = np.array([start for start, _ in encoding.offsets])
        learned = flags[np.minimum(starts, len(flags) - 1)]
        sees = (np.cumsum(ids == self.image) + self.images - 1) // self.images - 1
        return Encoded(ids, learned, sees, sample.scenes)

    def _chat(self, sample: Sample) -> list[tuple[str, bool]]:
        spans = [(self.start, False)]
        for turn in sample.turns:
            spans.append((f"{turn.role.capitalize()}:", False))
            if turn.role == "user":
                text = "".join(part if isinstance(part, str) else self.mark for part in turn.parts)
                blank = " " if isinstance(turn.parts[0], str) else ""
                spans.append((f"{blank}{text}{TURN_END}\n", False))
            else:
                given = f" {turn.given}" if turn.given else ""
                spans += [(given, False), (f" {turn.parts[0]}{TURN_END}", turn.learn), ("\n", False)]
        return [span for span in spans if span[0]]

    def _raw(self, sample: Sample) -> list[tuple[str, bool]]:
        """Text items are stripped of blanks, and the end of an utterance stands between two text items."""
        question, answer = sample.turns
        text, before = self.start, None
        for part in question.parts:
            if isinstance(part, str):
                text += TURN_END * isinstance(before, str) + part.strip(" ")
            else:
                text += self.mark
            before = part
        blank = "" if text.endswith(("\n", ">")) else " "
        return [(text, False), (f"{blank}{answer.parts[0]}</s>", True)]
