"""One text of a tokenizer's call: its ids and what stands beside each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idefics.compat.batch_feature import PaddingOptions
from idefics.errors import BadPrompt, BadSetting
from idefics.processing.tokenizer import Tokenizer
from idefics.validation import describe_type

EncodedRow = dict[str, list[Any]]

# What a row is filled up with.
PADDING_VALUE_BY_COLUMN: dict[str, Any] = {
    "attention_mask": 0,
    "token_type_ids": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}
PADDED_COLUMNS = ("input_ids", *PADDING_VALUE_BY_COLUMN)


def encode_row(
    codec: Tokenizer,
    text: Any,
    pair: Any,
    padding_options: PaddingOptions,
    *,
    num_opening_tokens: int,
    adds_special: bool,
) -> EncodedRow:
    """The ids of a text, or of a pair of texts, and what may stand beside them, cut as `padding_options` says.

    Args:
        num_opening_tokens: how many tokens tokenizer.json itself puts before a text.
    """
    for one in (text,) if pair is None else (text, pair):
        if not isinstance(one, str):
            raise BadPrompt(f"a text is {describe_type(one)}: give a string, or a list of strings")
    encoding = codec.encode_with_offsets(text, pair, add_special_tokens=adds_special)
    kept_positions = padding_options.kept_positions(len(encoding.ids), num_opening_tokens=num_opening_tokens)
    if pair is not None and len(kept_positions) < len(encoding.ids):
        raise BadSetting(
            f"a pair of texts has {len(encoding.ids)} tokens, and max_length is {len(kept_positions)}; pairs are not cut: "
            "shorten the texts"
        )
    columns: dict[str, Sequence[Any]] = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
        "special_tokens_mask": encoding.special_tokens_mask,
        "offset_mapping": encoding.offsets,
    }
    return {name: [column[position] for position in kept_positions] for name, column in columns.items()}


def overlaps_spans(offsets: Iterable[Sequence[int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token that shares characters with a span, 0 for the others."""
    return [
        int(any(start < last and first < end for first, last in spans)) for start, end in map(tuple, offsets)
    ]


def rows_to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A list of dicts as a dict of lists."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
