"""What stands in the text for a picture: a kind of marks for each family."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from idefics.config import PromptStyle
from idefics.processing.chat import IMAGE
from idefics.processing.tokenizer import Piece

FAKE = "<fake_token_around_image>"


def marks(style: PromptStyle, tokens: int, rows: int, columns: int, *, follows_picture: bool) -> str:
    """What stands in the text for one picture, as the released processors write it.

    Args:
        tokens: how many places one frame takes.
        rows, columns: of its grid; (0, 0) where the picture is one frame.
    """
    if style.marks == "beside":  # neighbouring pictures share the fake between them
        return f"{IMAGE}{FAKE}" if follows_picture else f"{FAKE}{IMAGE}{FAKE}"
    frame = IMAGE * tokens
    if style.marks == "frames":
        return f"{FAKE}{frame}" * (rows * columns + 1) + FAKE
    tiles = "".join(
        "".join(f"{FAKE}<row_{row}_col_{column}>{frame}" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    )
    whole = f"{FAKE}<global-img>{frame}{FAKE}"
    return f"{tiles}\n{whole}" if tiles else whole


def share_fakes(pieces: Sequence[Piece]) -> list[Piece]:
    """Two fakes in a row become one, wherever they come from: Idefics 2's processor replaces them in the whole text."""
    runs = groupby(pieces, key=lambda piece: piece.trusted)
    texts = [("".join(piece.text for piece in run), trusted) for trusted, run in runs]
    return [Piece(text.replace(FAKE * 2, FAKE) if trusted else text, trusted) for text, trusted in texts]
