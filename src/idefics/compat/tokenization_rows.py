"""One text of a tokenizer's call: its ids and what stands beside each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idefics.calls import kind_of
from idefics.compat.features import Fitting
from idefics.errors import BadPrompt, BadSetting
from idefics.processing.tokenizer import Tokenizer

Row = dict[str, list[Any]]

# What a row is filled up with.
EXTRAS: dict[str, Any] = {
    "attention_mask": 0,
    "token_type_ids": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}
ALIKE = ("input_ids", *EXTRAS)

# Words of transformers' call -> the values that ask for nothing. Any value of `verbose` does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_split_into_words": (None, False),
    "return_mm_token_type_ids": (None, False),
    "return_overflowing_tokens": (None, False),
    "return_text_replacement_offsets": (None, False),
    "split_special_tokens": (None, False),
    "stride": (None, 0),
    "text_pair_target": (None,),
    "text_target": (None,),
    "verbose": (None, False, True),
}


def without_neutral(call: str, given: Mapping[str, Any]) -> None:
    """Raises unless all of these words of a call ask for nothing.

    Raises:
        TypeError: a word that transformers does not have either.
        BadSetting: one that asks for something that this package does not have.
    """
    for name, value in given.items():
        if name not in NEUTRAL:
            raise TypeError(f"{call} got an unexpected keyword argument {name!r}")
        if value not in NEUTRAL[name]:
            raise BadSetting(f"{call}: {name} is {value!r}, which is not done here: leave it out")


def row_of(
    codec: Tokenizer,
    text: Any,
    pair: Any,
    fitting: Fitting,
    *,
    opening: int,
    adds_special: bool,
) -> Row:
    """The ids of a text, or of a pair of texts, and what may stand beside them, cut as `fitting` says.

    Args:
        opening: how many tokens tokenizer.json itself puts before a text.
    """
    for one in (text,) if pair is None else (text, pair):
        if not isinstance(one, str):
            raise BadPrompt(f"a text is {kind_of(one)}: give a string, or a list of strings")
    encoding = codec.encoding(text, pair, adds_special=adds_special)
    kept = fitting.kept(len(encoding.ids), opening=opening)
    if pair is not None and len(kept) < len(encoding.ids):
        raise BadSetting(
            f"a pair of texts has {len(encoding.ids)} tokens, and max_length is {len(kept)}; pairs are not cut: "
            "shorten the texts"
        )
    columns: dict[str, Sequence[Any]] = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "special_tokens_mask": encoding.special_tokens_mask,
        "offset_mapping": encoding.offsets,
    }
    return {name: [column[position] for position in kept] for name, column in columns.items()}


def within(offsets: Iterable[Sequence[int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token that shares characters with a span, 0 for the others."""
    return [
        int(any(start < last and first < end for first, last in spans)) for start, end in map(tuple, offsets)
    ]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A list of dicts as a dict of lists."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
