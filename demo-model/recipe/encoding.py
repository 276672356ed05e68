"""Converts samples of the picture book to token ids, loss masks and image indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from picturebook import ConversationSample, Scene

from .tokenizer_training import END_OF_UTTERANCE, FAKE_IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN, IMAGE_TOKEN


@dataclass(frozen=True)
class EncodedSample:
    """One sequence.

    Attributes:
        ids: (T,) token ids.
        is_target: (T,) whether a token belongs to an answer that is learned.
        image_index: (T,) the latest picture at or before each token, -1: none.
        scenes: the pictures.
    """

    ids: np.ndarray
    is_target: np.ndarray
    image_index: np.ndarray
    scenes: tuple[Scene, ...]


class SampleEncoder:
    """Renders samples as the released processors do; a test compares it with `idefics.processing`."""

    def __init__(self, tokenizer: Tokenizer, tokens_per_image: int) -> None:
        """`tokens_per_image`: number of image tokens of an inline image; 0 for cross-attention models."""
        self.tokenizer, self.uses_cross_attention = tokenizer, tokens_per_image == 0
        self.image_token_id = tokenizer.token_to_id(IMAGE_TOKEN)
        self.image_placeholder = (
            f"{FAKE_IMAGE_TOKEN}{IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}"
            if self.uses_cross_attention
            else f"{FAKE_IMAGE_TOKEN}{GLOBAL_IMAGE_TOKEN}{IMAGE_TOKEN * tokens_per_image}{FAKE_IMAGE_TOKEN}"
        )
        self.bos_token = "<s>" if self.uses_cross_attention else "<|im_start|>"
        self.image_tokens_per_image = max(tokens_per_image, 1)

    def __call__(self, sample: ConversationSample) -> EncodedSample:
        spans = self._raw_prompt_spans(sample) if sample.is_raw_prompt else self._chat_spans(sample)
        encoding = self.tokenizer.encode("".join(text for text, _ in spans), add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        flags = np.concatenate([np.full(len(text), flag) for text, flag in spans])
        starts = np.array([start for start, _ in encoding.offsets])
        is_target = flags[np.minimum(starts, len(flags) - 1)]
        image_index = (
            np.cumsum(ids == self.image_token_id) + self.image_tokens_per_image - 1
        ) // self.image_tokens_per_image - 1
        return EncodedSample(ids, is_target, image_index, sample.scenes)

    def _chat_spans(self, sample: ConversationSample) -> list[tuple[str, bool]]:
        spans = [(self.bos_token, False)]
        for turn in sample.turns:
            spans.append((f"{turn.role.capitalize()}:", False))
            if turn.role == "user":
                text = "".join(
                    part if isinstance(part, str) else self.image_placeholder for part in turn.parts
                )
                blank = " " if isinstance(turn.parts[0], str) else ""
                spans.append((f"{blank}{text}{END_OF_UTTERANCE}\n", False))
            else:
                prefix = f" {turn.answer_prefix}" if turn.answer_prefix else ""
                spans += [
                    (prefix, False),
                    (f" {turn.parts[0]}{END_OF_UTTERANCE}", turn.is_target),
                    ("\n", False),
                ]
        return [span for span in spans if span[0]]

    def _raw_prompt_spans(self, sample: ConversationSample) -> list[tuple[str, bool]]:
        """Strips blanks of text items and puts `<end_of_utterance>` between two text items."""
        question, answer = sample.turns
        text, previous_part = self.bos_token, None
        for part in question.parts:
            if isinstance(part, str):
                text += END_OF_UTTERANCE * isinstance(previous_part, str) + part.strip(" ")
            else:
                text += self.image_placeholder
            previous_part = part
        blank = "" if text.endswith(("\n", ">")) else " "
        return [(text, False), (f"{blank}{answer.parts[0]}</s>", True)]
