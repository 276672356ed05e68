"""The placeholder text of a picture in a prompt, which differs between the families of models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from idefics.config import PromptFormat
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.tokenizer import TextPiece

FAKE_IMAGE_TOKEN = "<fake_token_around_image>"


def image_placeholder_text(
    prompt_format: PromptFormat, tokens_per_frame: int, rows: int, columns: int, *, follows_picture: bool
) -> str:
    """The placeholder of one picture, as the released processors write it.

    Args:
        tokens_per_frame: how many image tokens one frame takes.
        rows, columns: the grid of the picture's tiles; (0, 0) where it is one frame.
        follows_picture: whether another picture's placeholder is directly before it.
    """
    if prompt_format.image_tokens == "cross_attention":
        placeholder = (
            f"{IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}"  # neighbouring pictures share the fake token between them
        )
        return placeholder if follows_picture else f"{FAKE_IMAGE_TOKEN}{placeholder}"
    frame_text = IMAGE_TOKEN * tokens_per_frame
    if prompt_format.image_tokens == "inline":
        return f"{FAKE_IMAGE_TOKEN}{frame_text}" * (rows * columns + 1) + FAKE_IMAGE_TOKEN
    tiles_text = "".join(
        "".join(f"{FAKE_IMAGE_TOKEN}<row_{row}_col_{column}>{frame_text}" for column in range(1, columns + 1))
        + "\n"
        for row in range(1, rows + 1)
    )
    global_text = f"{FAKE_IMAGE_TOKEN}<global-img>{frame_text}{FAKE_IMAGE_TOKEN}"
    return f"{tiles_text}\n{global_text}" if tiles_text else global_text


def merge_adjacent_fake_tokens(pieces: Sequence[TextPiece]) -> list[TextPiece]:
    """Replaces two fake tokens in a row by one in all trusted text, as the processor of Idefics 2 does."""
    runs = groupby(pieces, key=lambda piece: piece.trusted)
    texts = [("".join(piece.text for piece in run), trusted) for trusted, run in runs]
    return [
        TextPiece(text.replace(FAKE_IMAGE_TOKEN * 2, FAKE_IMAGE_TOKEN) if trusted else text, trusted)
        for text, trusted in texts
    ]
