"""Texts of a tokenizer's call as rows of ids, masks and offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idefics.compat.batch_feature import PaddingOptions
from idefics.errors import BadPrompt, BadSetting
from idefics.processing.tokenizer import Tokenizer
from idefics.validation import describe_type

EncodedRow = dict[str, list[Any]]  # column -> a value for each token

# What rows are padded with.
PADDING_VALUE_BY_COLUMN: dict[str, Any] = {
    "assistant_masks": 0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}
PADDED_COLUMNS = ("input_ids", *PADDING_VALUE_BY_COLUMN)


def encode_rows(
    codec: Tokenizer,
    text: str | Sequence[str],
    text_pair: str | Sequence[str] | None,
    padding_options: PaddingOptions,
    *,
    add_special_tokens: bool,
) -> list[EncodedRow]:
    """The ids, masks and offsets of a text or of a batch of texts, truncated as `padding_options` says.

    Args:
        text_pair: a second text for each; None: there are none.

    Raises:
        BadPrompt: a text is not a string, or there are more or fewer second texts.
        BadSetting: a pair of texts is longer than `max_length`.
    """
    is_one = isinstance(text, str)
    texts: Any = [text] if is_one else text
    pairs: Any = [text_pair] if is_one else text_pair or [None] * len(texts)
    if len(pairs) != len(texts):
        raise BadPrompt(f"there are {len(texts)} texts and {len(pairs)} in text_pair: give as many")
    num_opening_tokens = len(codec.encode("", add_special_tokens=add_special_tokens))
    rows = []
    for one, pair in zip(texts, pairs, strict=True):
        for part in (one,) if pair is None else (one, pair):
            if not isinstance(part, str):
                raise BadPrompt(f"a text is {describe_type(part)}: give a string, or a list of strings")
        encoding = codec.encode_with_offsets(one, pair, add_special_tokens=add_special_tokens)
        length = len(encoding.ids)
        kept_positions = padding_options.kept_positions(length, num_opening_tokens=num_opening_tokens)
        if pair is not None and len(kept_positions) < length:
            raise BadSetting(
                f"a pair of texts has {length} tokens, and max_length is {len(kept_positions)}; pairs are not "
                "truncated: shorten the texts"
            )
        columns: dict[str, Sequence[Any]] = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
            "special_tokens_mask": encoding.special_tokens_mask,
            "offset_mapping": encoding.offsets,
        }
        rows.append(
            {name: [column[position] for position in kept_positions] for name, column in columns.items()}
        )
    return rows


def span_overlap_mask(offsets: Iterable[Sequence[int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Returns 1 for each token that shares characters with a span, 0 for others."""
    return [
        int(any(start < last and first < end for first, last in spans)) for start, end in map(tuple, offsets)
    ]


def rows_to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turns a list of dicts, one for each row, into a dict of lists, one for each column."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
