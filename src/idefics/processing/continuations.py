"""The token ids of continuations: texts that may follow a prompt, whose likelihoods are compared.

Needs the tokenizer only; pictures are placeholder text here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import takewhile

from idefics.errors import BadPrompt
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.text_limit import TextLimit
from idefics.processing.tokenizer import TextPiece, Tokenizer


def encode_continuations(
    tokenizer: Tokenizer, text_limit: TextLimit, pieces: list[TextPiece], continuations: Sequence[TextPiece]
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """Tokenizes a prompt with each of its continuations.

    Args:
        pieces: the text of the prompt, with placeholders for its pictures.
        continuations: the texts that may follow it directly.

    Returns:
        The ids that the prompt shares with all of its continuations, and for each continuation the ids that follow
        them. The shared ids lack the last few of the prompt if a continuation changes how the prompt's end is
        tokenized; those are then at the beginning of each continuation's ids.

    Raises:
        BadPrompt: there are no continuations, or one is blank or holds an `<image>`.
        PromptTooLong: the prompt or a continuation has more tokens than the model reads.
    """
    if not continuations:
        raise BadPrompt("no continuations given: give at least one")
    for one in continuations:
        check_continuation(tokenizer, text_limit, one)
    encode = partial(tokenizer.encode_pieces, max_tokens=text_limit.max_tokens)
    ids = encode(pieces)
    last_pieces = pieces_from_last_special_token(tokenizer, pieces)  # a continuation changes nothing before
    last_ids = encode(last_pieces)
    if ids[len(ids) - len(last_ids) :] != last_ids:
        last_pieces, last_ids = pieces, ids
    full_ids = [encode([*last_pieces, one]) for one in continuations]
    ids_by_position = zip(last_ids, *full_ids, strict=False)
    num_common = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, ids_by_position))
    continuation_ids = tuple(tuple(whole[num_common:]) for whole in full_ids)
    return ids[: len(ids) - len(last_ids) + num_common], continuation_ids


def check_continuation(tokenizer: Tokenizer, text_limit: TextLimit, continuation: TextPiece) -> None:
    """Raises an error if a text cannot be a continuation of any prompt.

    Raises:
        BadPrompt: it is blank, or holds an `<image>`.
        PromptTooLong: it is too long however it is tokenized; see `TextLimit`.
    """
    text = continuation.text
    text_limit.check([text])
    if not text.strip():
        raise BadPrompt(f"the continuation {text!r} is blank: give words to choose from")
    if IMAGE_TOKEN in text and tokenizer.token_to_id(IMAGE_TOKEN) in tokenizer.encode_pieces([continuation]):
        raise BadPrompt(f"the continuation {text!r} holds an {IMAGE_TOKEN}: continuations are text")


def pieces_from_last_special_token(tokenizer: Tokenizer, pieces: list[TextPiece]) -> list[TextPiece]:
    """The last pieces, beginning with the last recognised special token; all pieces if there is none."""
    for index in reversed(range(len(pieces))):
        text, trusted = pieces[index]
        start = _find_last(text, tokenizer.added_token_contents) if trusted else -1
        if start >= 0:
            return [TextPiece(text[start:], trusted=True), *pieces[index + 1 :]]
    return pieces


@lru_cache(maxsize=64)  # templates write the same texts again and again
def _find_last(text: str, tokens: frozenset[str]) -> int:
    """Where the last of some tokens begins in a text; -1 if it has none."""
    return max(map(text.rfind, tokens), default=-1)
