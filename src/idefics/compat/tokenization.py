"""The tokenizer as the guides call it, around `processing.Tokenizer`, which follows tokenizer.json literally.

Special tokens in a text are encoded as such: the text is the caller's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.compat.batch_feature import VERY_LARGE_INTEGER, BatchFeature, PaddingOptions, Side
from idefics.compat.keyword_arguments import (
    NEUTRAL_TOKENIZER_KWARGS,
    check_and_drop_neutral_kwargs,
    check_save_kwargs,
)
from idefics.compat.pretrained import PROCESSOR_FILES, PretrainedMixin
from idefics.compat.tokenization_chat import TOKENIZER_CALL_KWARG_NAMES, ChatTemplateMixin
from idefics.compat.tokenization_encoding import (
    PADDED_COLUMNS,
    PADDING_VALUE_BY_COLUMN,
    encode_rows,
    rows_to_columns,
)
from idefics.compat.tokenization_files import read_tokenizer_arguments, write_tokenizer
from idefics.compat.tokenization_vocabulary import SPECIAL_TOKEN_NAMES
from idefics.errors import BadPrompt, BadSetting, UnknownArgument
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os

# Arguments of a processor's call that may be given with its tokenizer.
CALL_KWARG_NAMES = ("image_seq_len", *TOKENIZER_CALL_KWARG_NAMES)
# The settings of a tokenizer, with their defaults.
DEFAULT_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(SPECIAL_TOKEN_NAMES),
    "padding_side": "left",
    "truncation_side": "right",
    "model_max_length": VERY_LARGE_INTEGER,
    "chat_template": "",
}


class PreTrainedTokenizer(ChatTemplateMixin, PretrainedMixin):
    """The tokenizer of a checkpoint.

    Args:
        codec: encodes text and decodes ids.
        bos_token, eos_token, unk_token, pad_token, sep_token, cls_token, mask_token: the special tokens; None where
            there is none.
        padding_side: "left" unless the checkpoint's files say otherwise, as generation continues at the right end.
        truncation_side: where rows that are too long lose tokens.
        model_max_length: the longest text in tokens; 10^20 and more: no limit.
        chat_template: Jinja source, or "".
        max_length, padding, truncation, pad_to_multiple_of, image_seq_len: defaults for the calls of the processor that
            holds the tokenizer.
    """

    file_selection = PROCESSOR_FILES
    model_input_names: ClassVar = ["input_ids", "attention_mask"]
    is_fast: ClassVar = True

    padding_side: Side
    truncation_side: Side
    model_max_length: int

    def __init__(self, codec: Tokenizer, **settings: Any) -> None:
        self.init_kwargs = {name: settings.pop(name) for name in CALL_KWARG_NAMES if name in settings}
        if unknown := settings.keys() - DEFAULT_SETTINGS.keys():
            raise UnknownArgument(
                type(self).__name__, sorted(unknown), [*DEFAULT_SETTINGS, *CALL_KWARG_NAMES]
            )
        self.codec = codec
        vars(self).update({**DEFAULT_SETTINGS, **settings})

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
        """Tokenizes a text or a batch of texts.

        Args:
            text_pair: a second text for each, tokenized after the first as tokenizer.json says.
            add_special_tokens: whether tokens that tokenizer.json adds by itself, such as `<s>`, are added.
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `PaddingOptions`.
            return_token_type_ids: also return `token_type_ids`, 1 for tokens of the second text.
            return_special_tokens_mask: also return `special_tokens_mask`, 1 for special tokens and padding.
            return_offsets_mapping: also return `offset_mapping`, the (start, end) of each token in characters.
            return_length: also return `length`, the number of tokens of each row before padding.
            neutral: arguments of transformers at values that ask for nothing, such as `stride=0`.

        Returns:
            `input_ids` and `attention_mask`: T numbers for one text, B rows for a batch; tensors are always (B, T).
        """
        if unknown := check_and_drop_neutral_kwargs(type(self).__name__, neutral, NEUTRAL_TOKENIZER_KWARGS):
            raise UnknownArgument(type(self).__name__, sorted(unknown), sorted(NEUTRAL_TOKENIZER_KWARGS))
        padding_options = self.make_padding_options(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        is_returned_by_column = {
            "input_ids": True,
            "attention_mask": return_attention_mask,
            "token_type_ids": return_token_type_ids,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        rows = encode_rows(
            self.codec, text, text_pair, padding_options, add_special_tokens=add_special_tokens
        )
        names = [name for name, is_returned in is_returned_by_column.items() if is_returned]
        columns = {name: [row[name] for row in rows] for name in names}
        entries: dict[str, Any] = self.pad_columns(columns, padding_options)
        if return_length:
            entries["length"] = [len(ids) for ids in columns["input_ids"]]
        if isinstance(text, str) and return_tensors is None:
            entries = {name: batch[0] for name, batch in entries.items()}
        return padding_options.to_batch(entries)

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
        """Pads rows that were tokenized one by one to one length.

        Args:
            encoded_inputs: what calls returned: a dict of rows, or a list of dicts of one row each.
            return_attention_mask: False: no `attention_mask` is added.
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
            columns.setdefault("attention_mask", [[1] * len(row) for row in columns["input_ids"]])
        padding_options = self.make_padding_options(
            padding, None, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        return padding_options.to_batch({**inputs, **self.pad_columns(columns, padding_options)})

    def make_padding_options(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        padding_side: Side | None,
        pad_to_multiple_of: int | None,
        return_tensors: str | None,
    ) -> PaddingOptions:
        """The arguments of a call, completed by the settings of this tokenizer."""
        return PaddingOptions(
            padding,
            truncation,
            max_length,
            padding_side or self.padding_side,
            pad_to_multiple_of,
            return_tensors,
            self.truncation_side,
            self.model_max_length,
        )

    def pad_columns(
        self, columns: Mapping[str, Sequence[Sequence[Any]]], padding_options: PaddingOptions
    ) -> dict[str, Any]:
        """Pads rows of ids, masks and offsets, each by its value, as far as the options ask for it.

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
        """The `input_ids` of a text; options as in the call."""
        return self(text, text_pair, **options)["input_ids"]


# Names of the guides. One class serves all of them, as tokenizer.json says how text is split.
GPT2TokenizerFast = LlamaTokenizer = LlamaTokenizerFast = PreTrainedTokenizerFast = PreTrainedTokenizer
