"""`show_rows`: rows of training data as the model will see them, for people: what is learned, and what rows cost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np

from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.tokenizer import Tokenizer
from idefics.train.rows import TrainingRow, TrainingRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEARNED_START, LEARNED_END = "«", "»"
GREEN, RESET = "\x1b[32m", "\x1b[0m"  # ECMA-48, 8.3.117
TEXT, IMAGE, LEARNED = 0, 1, 2


def show_rows(rows: TrainingRows, tokenizer: Tokenizer, count: int, *, in_colour: bool) -> Iterator[str]:
    """Yields a text of some lines for each of the first rows.

    Learned tokens stand between « and », and are green where colours are shown. A run of image tokens is one
    `<image>x64`. Characters that a terminal would act on are written as escapes.

    Args:
        tokenizer: the checkpoint's.
        count: how many rows.
        in_colour: whether the output is a terminal with colours.
    """
    for row in islice((rows[index] for index in range(len(rows))), count):
        yield f"{describe_row(row)}\n{_render(row, tokenizer, in_colour)}\n"


def describe_row(row: TrainingRow) -> str:
    """The name of a row and what it costs: "rows.jsonl#1: 93 tokens (64 of 1 picture), 5 of them learned"."""
    num_pictures = len(row.picture_keys)
    pictures = f"{num_pictures:,} picture{'' if num_pictures == 1 else 's'}"
    num_image_tokens = sum(map(len, row.image_token_positions))
    of_pictures = f" ({num_image_tokens:,} of {pictures})" if num_pictures else " (no picture)"
    return f"{row.name}: {len(row):,} tokens{of_pictures}, {row.num_targets:,} of them learned"


def _render(row: TrainingRow, tokenizer: Tokenizer, in_colour: bool) -> str:
    """The text of a row, runs of tokens of one kind together."""
    kinds = np.where(row.is_target, LEARNED, TEXT)
    for positions in row.image_token_positions:
        kinds[positions] = IMAGE
    parts = []
    for kind, run in groupby(range(len(row)), key=kinds.__getitem__):
        text = _run_text(row.ids[list(run)], kind, tokenizer)
        if kind == LEARNED:
            text = f"{LEARNED_START}{text}{LEARNED_END}"
            text = f"{GREEN}{text}{RESET}" if in_colour else text
        parts.append(text)
    return "".join(parts)


def _run_text(ids: NDArray[np.int32], kind: int, tokenizer: Tokenizer) -> str:
    """The text of a run of tokens."""
    if kind == IMAGE:
        return IMAGE_TOKEN if len(ids) == 1 else f"{IMAGE_TOKEN}x{len(ids)}"
    text = tokenizer.decode_bytes(ids.tolist(), hidden_ids=()).decode(errors="replace")
    return "".join(one if one == "\n" or one.isprintable() else repr(one)[1:-1] for one in text)
