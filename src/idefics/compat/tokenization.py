"""The tokenizer with the calls of the guides: text to ids, rows to a batch, conversations, files.

Thin over `processing.Tokenizer`, which follows `tokenizer.json` literally. Special tokens in the text are honoured:
it is the caller's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.compat.batch_feature import VERY_LARGE_INTEGER, BatchFeature, PaddingOptions, Side
from idefics.compat.keyword_arguments import (
    NEUTRAL_TOKENIZER_KWARGS,
    check_save_kwargs,
    drop_neutral_kwargs,
)
from idefics.compat.pretrained import PROCESSOR_FILES, PretrainedMixin
from idefics.compat.tokenization_encoding import (
    PADDED_COLUMNS,
    PADDING_VALUE_BY_COLUMN,
    EncodedRow,
    encode_row,
    overlaps_spans,
    rows_to_columns,
)
from idefics.compat.tokenization_files import read_tokenizer_arguments, write_tokenizer
from idefics.compat.tokenization_vocabulary import SPECIAL_TOKEN_NAMES, VocabularyMixin
from idefics.errors import BadPrompt, BadSetting, UnknownArgument
from idefics.processing.chat_template import render_template
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os

UNUSED_SPECIAL_TOKENS = (
    "cls_token",
    "sep_token",
    "mask_token",
)  # of no use to these models: special tokens like others
# Words of a call that may be given with the tokenizer, for the processor that holds it.
CALL_KWARG_NAMES = ("image_seq_len", "max_length", "pad_to_multiple_of", "padding", "truncation")


class PreTrainedTokenizer(VocabularyMixin, PretrainedMixin):
    """A checkpoint's tokenizer.

    Args:
        codec: text to ids and back.
        bos_token, eos_token, unk_token, pad_token, sep_token, cls_token, mask_token: the tokens with a part to play;
            None where there is none.
        padding_side: "left", as generation goes on from the right end of a row, unless a checkpoint's file says else.
        truncation_side: where rows that are too long lose tokens.
        model_max_length: tokens of the longest text; 10^20 and more is no limit.
        chat_template: Jinja source, or "".
        call_words: `max_length`, `padding`, `truncation`, `pad_to_multiple_of` and `image_seq_len`, which a processor's
            calls take where they do not say it themselves.
    """

    file_selection = PROCESSOR_FILES
    model_input_names: ClassVar = ["input_ids", "attention_mask"]
    is_fast: ClassVar = True

    def __init__(
        self,
        codec: Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        sep_token: str | None = None,
        cls_token: str | None = None,
        mask_token: str | None = None,
        padding_side: Side = "left",
        truncation_side: Side = "right",
        model_max_length: int = VERY_LARGE_INTEGER,
        chat_template: str = "",
        **call_words: Any,
    ) -> None:
        if unknown := call_words.keys() - set(CALL_KWARG_NAMES):
            raise UnknownArgument(
                type(self).__name__, sorted(unknown), list(signature(type(self)).parameters)
            )
        self.codec = codec
        self.bos_token, self.eos_token = bos_token, eos_token
        self.unk_token, self.pad_token = unk_token, pad_token
        self.sep_token, self.cls_token, self.mask_token = sep_token, cls_token, mask_token
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.model_max_length, self.chat_template = model_max_length, chat_template
        self.init_kwargs = call_words

    @classmethod
    def _from_folder(cls, folder: Path, **settings: Any) -> Self:
        """Reads tokenizer.json, tokenizer_config.json and special_tokens_map.json; special tokens in `settings` that
        the vocabulary lacks are added to it.
        """
        codec = Tokenizer.load(folder)
        tokenizer = cls(codec, **read_tokenizer_arguments(folder, codec) | settings)
        tokenizer.add_special_tokens(
            {name: settings[name] for name in SPECIAL_TOKEN_NAMES if settings.get(name) is not None}
        )
        return tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As `PretrainedMixin.from_pretrained`; `name_or_path` is then the name that was given."""
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike[str], **keywords: Any) -> tuple[str, ...]:
        """Writes tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja.

        Returns:
            The paths of the files.
        """
        check_save_kwargs(keywords)
        return write_tokenizer(self, Path(save_directory), self.chat_template)

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: Side | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = True,
        return_token_type_ids: bool | None = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        return_tensors: str | None = None,
        **neutral: Any,
    ) -> BatchFeature:
        """Ids of a text or of a batch of texts; see `PaddingOptions` for how long the rows become.

        Args:
            text_pair: a second text for each, tokenized after the first as tokenizer.json says.
            add_special_tokens: whether what tokenizer.json adds by itself, such as `<s>`, is added.
            return_token_type_ids: also `token_type_ids`, 1 for tokens of the second text.
            return_special_tokens_mask: also `special_tokens_mask`, 1 for what was added or filled up.
            return_offsets_mapping: also `offset_mapping`, the (start, end) of each token in characters.
            return_length: also `length`, the tokens of each row before it is filled up.
            neutral: words of transformers' call at the value that asks for nothing, such as `stride=0`.

        Returns:
            `input_ids` and `attention_mask`: T numbers for one text, B rows for a batch; tensors are always (B, T).
        """
        if unknown := drop_neutral_kwargs(type(self).__name__, neutral, NEUTRAL_TOKENIZER_KWARGS):
            raise UnknownArgument(type(self).__name__, sorted(unknown), sorted(NEUTRAL_TOKENIZER_KWARGS))
        padding_options = self.make_padding_options(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        is_one = isinstance(text, str)
        texts = [text] if isinstance(text, str) else text
        pairs: Any = [text_pair] if is_one else text_pair or [None] * len(texts)
        if len(pairs) != len(texts):
            raise BadPrompt(f"there are {len(texts)} texts and {len(pairs)} in text_pair: give as many")
        num_opening_tokens = len(self.opening_ids()) if add_special_tokens else 0
        rows = [
            encode_row(
                self.codec,
                one,
                pair,
                padding_options,
                num_opening_tokens=num_opening_tokens,
                adds_special=add_special_tokens,
            )
            for one, pair in zip(texts, pairs, strict=True)
        ]
        is_returned_by_name = {
            "attention_mask": return_attention_mask,
            "token_type_ids": return_token_type_ids,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        entries = self._pad_columns(
            rows, [name for name, is_wanted in is_returned_by_name.items() if is_wanted], padding_options
        )
        if return_length:
            entries["length"] = [len(row["input_ids"]) for row in rows]
        if is_one and return_tensors is None:
            entries = {name: batch[0] for name, batch in entries.items()}
        return padding_options.to_batch(entries)

    def _pad_columns(
        self, rows: Sequence[EncodedRow], names: Sequence[str], padding_options: PaddingOptions
    ) -> dict[str, Any]:
        """Rows as the entries of a batch, of one length where it is asked for."""
        ids = self.pad_ids([row["input_ids"] for row in rows], padding_options)
        return {"input_ids": ids} | {
            name: padding_options.pad([row[name] for row in rows], PADDING_VALUE_BY_COLUMN[name])
            for name in names
        }

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchFeature:
        """Rows that were tokenized one by one, as a batch of one length.

        Args:
            encoded_inputs: what calls returned: a dict of rows, or a list of dicts of one row each.
            return_attention_mask: whether there is an `attention_mask`; None: as the tokenizer returns it.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors: see `PaddingOptions`.

        Raises:
            BadPrompt: there are no `input_ids`.
        """
        inputs = encoded_inputs if isinstance(encoded_inputs, Mapping) else rows_to_columns(encoded_inputs)
        if "input_ids" not in inputs:
            raise BadPrompt(f"there are no input_ids among {', '.join(inputs) or 'no entries'}")
        columns = {
            name: [list(row) for row in batch] for name, batch in inputs.items() if name in PADDED_COLUMNS
        }
        if return_attention_mask is not False:
            ones = [[1] * len(row) for row in columns["input_ids"]]
            columns.setdefault("attention_mask", ones)
        padding_options = self.make_padding_options(
            padding, None, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        other_entries = {name: value for name, value in inputs.items() if name not in PADDED_COLUMNS}
        ids = self.pad_ids(columns.pop("input_ids"), padding_options)
        padded = {
            name: padding_options.pad(rows, PADDING_VALUE_BY_COLUMN[name]) for name, rows in columns.items()
        }
        return padding_options.to_batch({"input_ids": ids, **padded, **other_entries})

    def make_padding_options(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        padding_side: Side | None,
        pad_to_multiple_of: int | None,
        return_tensors: str | None,
    ) -> PaddingOptions:
        """How rows of this tokenizer become a batch."""
        side, truncation_options = (
            padding_side or self.padding_side,
            (self.truncation_side, self.model_max_length),
        )
        return PaddingOptions(
            padding, truncation, max_length, side, pad_to_multiple_of, return_tensors, *truncation_options
        )

    def opening_ids(self) -> list[int]:
        """What tokenizer.json itself puts before a text."""
        return self.codec.encode("", add_special_tokens=True)

    def pad_ids(self, rows: Sequence[Sequence[int]], padding_options: PaddingOptions) -> list[list[int]]:
        """Rows of ids of one length, or as they are where nothing asks for it."""
        if (
            self.pad_token_id is None
            and padding_options.padded_length([len(row) for row in rows]) is not None
        ):
            if len({len(row) for row in rows}) > 1:
                raise BadSetting("this tokenizer has no token to pad with: set its pad_token")
            return padding_options.pad(rows, 0)
        return padding_options.pad(rows, self.pad_token_id or 0)

    def encode(self, text: str, text_pair: str | None = None, **options: Any) -> Any:
        """The `input_ids` of a text; options as in the call."""
        return self(text, text_pair, **options)["input_ids"]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """A conversation, or a batch of them, through the chat template, its turns as they are.

        Args:
            tools, documents: variables of the template.
            chat_template: Jinja source instead of the checkpoint's.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end with the text of the last message, so that an answer goes on with it.
            tokenize: return ids; False returns text.
            return_dict: with `tokenize`, return all that the call does; False returns the ids alone.
            return_assistant_tokens_mask: also `assistant_masks`, 1 for tokens within `{% generation %}`.
            tokenizer_kwargs: options of the call.
            variables: options of the call (`padding`, `truncation`, `max_length`); further variables of the template.
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        batch: Any = conversation if is_batch else [conversation]
        options = {name: variables.pop(name) for name in CALL_KWARG_NAMES[1:] if name in variables}
        rendered = [
            render_template(
                self.chat_template if chat_template is None else chat_template,
                turns,
                {**self.special_tokens_map, "tools": tools, "documents": documents, **variables},
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for turns in batch
        ]
        texts: Any = [one.text for one in rendered]
        if not tokenize:
            return texts if is_batch else texts[0]
        options |= {"add_special_tokens": False, "return_tensors": return_tensors, **(tokenizer_kwargs or {})}
        encoding = self(
            texts if is_batch else texts[0], return_offsets_mapping=return_assistant_tokens_mask, **options
        )
        if return_assistant_tokens_mask:
            offsets = encoding.pop("offset_mapping")
            rows = [offsets] if not is_batch and return_tensors is None else offsets
            masks = [
                overlaps_spans(row, one.generation_spans) for row, one in zip(rows, rendered, strict=True)
            ]
            encoding["assistant_masks"] = masks if is_batch or return_tensors is not None else masks[0]
            encoding = encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]


# Names of the guides: there is one class, as tokenizer.json says how text is split.
GPT2TokenizerFast = LlamaTokenizer = LlamaTokenizerFast = PreTrainedTokenizerFast = PreTrainedTokenizer
