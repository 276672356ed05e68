"""How a tokenizer encodes and pads texts: rows of ids, masks and offsets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idefics.compat.batch_feature import BatchFeature, PaddingOptions, Side
from idefics.compat.keyword_arguments import NEUTRAL_TOKENIZER_KWARGS, check_and_drop_neutral_kwargs
from idefics.compat.tokenization_vocabulary import VocabularyMixin
from idefics.errors import BadPrompt, BadSetting, UnknownArgument
from idefics.validation import describe_type

# What rows are padded with.
PADDING_VALUE_BY_COLUMN: dict[str, Any] = {
    "assistant_masks": 0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}
# The arguments of calls that are fields of `PaddingOptions`.
PADDING_KWARGS = (
    "padding",
    "truncation",
    "max_length",
    "padding_side",
    "pad_to_multiple_of",
    "return_tensors",
)


Texts = str | Sequence[str]  # one, or a batch


class EncodingMixin(VocabularyMixin):
    """Gives a tokenizer its call, `encode` and `pad`.

    Attributes:
        padding_side, truncation_side: where rows get padding, and where rows that are too long lose tokens.
        model_max_length: the longest text in tokens; 10^20 and more: no limit.
    """

    padding_side: Side
    truncation_side: Side
    model_max_length: int

    def __call__(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        *,
        add_special_tokens: bool = True,
        return_attention_mask: bool | None = True,
        return_token_type_ids: bool | None = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        **keywords: Any,
    ) -> BatchFeature:
        """Tokenizes a text or a batch of texts.

        Args:
            text_pair: a second text for each, tokenized after the first as tokenizer.json says.
            add_special_tokens: whether tokens that tokenizer.json adds by itself, such as `<s>`, are added.
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `PaddingOptions`.
            return_token_type_ids: also return `token_type_ids`, 1 for tokens of the second text.
            return_special_tokens_mask: also return `special_tokens_mask`, 1 for special tokens and padding.
            return_offsets_mapping: also return `offset_mapping`, the (start, end) of each token in characters.
            return_length: also return `length`, the number of tokens of each row before padding.
            keywords: also arguments of transformers at values that ask for nothing, such as `stride=0`.

        Returns:
            `input_ids` and `attention_mask`: T numbers for one text, B rows for a batch; tensors are always (B, T).
        """
        padding_options = self._parse_padding_options(keywords)
        is_returned_by_column = {
            "input_ids": True,
            "attention_mask": return_attention_mask,
            "token_type_ids": return_token_type_ids,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        columns = self._encode_columns(
            text, text_pair, padding_options, add_special_tokens=add_special_tokens
        )
        columns = {name: columns[name] for name, is_returned in is_returned_by_column.items() if is_returned}
        entries: dict[str, Any] = self.pad_columns(columns, padding_options)
        if return_length:
            entries["length"] = [len(ids) for ids in columns["input_ids"]]
        if isinstance(text, str) and padding_options.return_tensors is None:
            entries = {name: batch[0] for name, batch in entries.items()}
        return padding_options.to_batch(entries)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        *,
        return_attention_mask: bool | None = None,
        **keywords: Any,
    ) -> BatchFeature:
        """Pads rows that were tokenized one by one to one length.

        Args:
            encoded_inputs: what calls returned: a dict of rows, or a list of dicts of one row each.
            return_attention_mask: False: no `attention_mask` is added.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: see `PaddingOptions`.
            keywords: also arguments of transformers at values that ask for nothing.

        Raises:
            BadPrompt: there are no `input_ids`.
        """
        keywords["padding"] = padding
        padding_options = self._parse_padding_options(keywords)
        inputs = encoded_inputs
        if not isinstance(inputs, Mapping):
            inputs = {name: [row[name] for row in inputs] for name in next(iter(inputs), ())}
        if "input_ids" not in inputs:
            raise BadPrompt(f"there are no input_ids among {', '.join(inputs) or 'no entries'}")
        columns = {
            name: [list(row) for row in batch]
            for name, batch in inputs.items()
            if name in {"input_ids", *PADDING_VALUE_BY_COLUMN}
        }
        if return_attention_mask is not False:
            columns.setdefault("attention_mask", [[1] * len(row) for row in columns["input_ids"]])
        return padding_options.to_batch({**inputs, **self.pad_columns(columns, padding_options)})

    def pop_padding_options(self, keywords: dict[str, Any]) -> PaddingOptions:
        """Removes the arguments of `PaddingOptions` from `keywords`, in place, and returns them as one object.

        Those that are not given are the settings of this tokenizer.
        """
        given = {name: value for name in PADDING_KWARGS if (value := keywords.pop(name, None)) is not None}
        return PaddingOptions(
            **{"padding_side": self.padding_side, **given},
            truncation_side=self.truncation_side,
            model_max_length=self.model_max_length,
        )

    def _parse_padding_options(self, keywords: dict[str, Any]) -> PaddingOptions:
        """The arguments of a call as `PaddingOptions`; raises UnknownArgument if there are others."""
        padding_options = self.pop_padding_options(keywords)
        if unknown := check_and_drop_neutral_kwargs(type(self).__name__, keywords, NEUTRAL_TOKENIZER_KWARGS):
            known = (*PADDING_KWARGS, *NEUTRAL_TOKENIZER_KWARGS)
            raise UnknownArgument(type(self).__name__, sorted(unknown), known)
        return padding_options

    def pad_columns(
        self, columns: Mapping[str, Sequence[Sequence[Any]]], padding_options: PaddingOptions
    ) -> dict[str, Any]:
        """Pads the rows of each column (ids, masks, offsets) with the value for that column.

        Rows that the options do not ask to pad are returned as they are.

        Raises:
            BadSetting: there is no `pad_token`, and the rows differ in length.
        """
        lengths = [len(row) for row in columns["input_ids"]]
        needs_padding = padding_options.padded_length(lengths) is not None
        if needs_padding and self.pad_token_id is None and len(set(lengths)) > 1:
            raise BadSetting("this tokenizer has no token to pad with: set its pad_token")
        padding_values = {"input_ids": self.pad_token_id or 0, **PADDING_VALUE_BY_COLUMN}
        return {name: padding_options.pad(rows, padding_values[name]) for name, rows in columns.items()}

    def encode(self, text: str, text_pair: str | None = None, **options: Any) -> Any:
        """The `input_ids` of a text, or of a pair of texts; `options` are the arguments of the call."""
        return self(text, text_pair, **options)["input_ids"]

    def _encode_columns(
        self,
        text: Texts,
        text_pair: Texts | None,
        padding_options: PaddingOptions,
        *,
        add_special_tokens: bool,
    ) -> dict[str, list[list[Any]]]:
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
        num_opening_tokens = len(self.codec.encode("", add_special_tokens=add_special_tokens))
        columns: defaultdict[str, list[list[Any]]] = defaultdict(list)
        for one, pair in zip(texts, pairs, strict=True):
            for part in (one, pair or ""):
                if not isinstance(part, str):
                    raise BadPrompt(f"a text is {describe_type(part)}: give a string, or a list of strings")
            encoding = self.codec.encode_with_offsets(one, pair, add_special_tokens=add_special_tokens)
            length = len(encoding.ids)
            kept_positions = padding_options.kept_positions(length, num_opening_tokens=num_opening_tokens)
            if pair is not None and len(kept_positions) < length:
                raise BadSetting(
                    f"a pair of texts has {length} tokens, and max_length is {len(kept_positions)}; pairs are not "
                    "truncated: shorten the texts"
                )
            values_by_column: dict[str, Sequence[Any]] = {
                "input_ids": encoding.ids,
                "attention_mask": encoding.attention_mask,
                "token_type_ids": encoding.type_ids,
                "special_tokens_mask": encoding.special_tokens_mask,
                "offset_mapping": encoding.offsets,
            }
            for name, values in values_by_column.items():
                columns[name].append([values[position] for position in kept_positions])
        return columns


def span_overlap_mask(offsets: Iterable[Sequence[int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Returns 1 for each token that shares characters with a span, 0 for others."""
    return [
        int(any(start < last and first < end for first, last in spans)) for start, end in map(tuple, offsets)
    ]
