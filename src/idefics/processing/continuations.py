"""The token ids of texts that may follow a prompt, whose likelihood is compared.

Knows the tokenizer; does not know pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from idefics.errors import BadPrompt
from idefics.processing.chat import IMAGE
from idefics.processing.text_length import TextLimit
from idefics.processing.tokenizer import Piece, Tokenizer


def encode_continuations(
    tokenizer: Tokenizer, limit: TextLimit, pieces: list[Piece], continuations: Sequence[Piece]
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """Ids of `pieces` as far as all continuations agree, and the ids of each continuation from there.

    Raises:
        BadPrompt: there are no continuations, or one is blank or holds an `<image>`.
        PromptTooLong: the prompt or a continuation has more tokens than the model reads.
    """
    if not continuations:
        raise BadPrompt("there are no endings to choose from: give at least one")
    for one in continuations:
        check_continuation(tokenizer, limit, one)
    encode = partial(tokenizer.encode_pieces, max_tokens=limit.max_tokens)
    ids = encode(pieces)
    tail = tokenizer.last_segment(pieces)  # a continuation changes nothing before it
    shared = encode(tail)
    if ids[len(ids) - len(shared) :] != shared:
        tail, shared = pieces, ids
    wholes = [encode([*tail, one]) for one in continuations]
    common = _common(shared, wholes)
    rests = tuple(tuple(whole[common:]) for whole in wholes)
    return ids[: len(ids) - len(shared) + common], rests


def check_continuation(tokenizer: Tokenizer, limit: TextLimit, continuation: Piece) -> None:
    """Refuses a text that can follow no prompt.

    Raises:
        BadPrompt: it is blank, or holds an `<image>`.
        PromptTooLong: it has more tokens than the model reads.
    """
    text = continuation.text
    limit.check([text])
    if not text.strip():
        raise BadPrompt(f"the ending {text!r} is blank: give words to choose from")
    if IMAGE in text and tokenizer.token_id(IMAGE) in tokenizer.encode_pieces([continuation]):
        raise BadPrompt(f"the ending {text!r} holds an {IMAGE}: endings are text")


def _common(shared: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """How many ids at the beginning all have in common."""
    for position, ids in enumerate(zip(shared, *wholes, strict=False)):
        if len(set(ids)) > 1:
            return position
    return min(map(len, [shared, *wholes]))
