"""The tokenizer as the guides call it, around `processing.Tokenizer`, which follows tokenizer.json literally.

Special tokens in a text are encoded as such: the text is the caller's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from idefics.compat.batch_feature import VERY_LARGE_INTEGER, BatchFeature
from idefics.compat.keyword_arguments import check_save_kwargs, split_kwargs
from idefics.compat.pretrained import PROCESSOR_FILES, PretrainedMixin, StrPath, write_json
from idefics.compat.tokenization_encoding import EncodingMixin, span_overlap_mask
from idefics.compat.tokenization_vocabulary import SPECIAL_TOKEN_NAMES
from idefics.errors import UnknownArgument
from idefics.processing.chat_template import render_template
from idefics.processing.checkpoint_settings import read_chat_template, read_json_object
from idefics.processing.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Conversations = Messages | Sequence[Messages]  # one, or a batch

# Arguments of a tokenizer's call that `apply_chat_template` takes too.
TOKENIZER_CALL_KWARG_NAMES = ("max_length", "pad_to_multiple_of", "padding", "truncation")
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
# The special tokens of Llama's tokenizer, for checkpoints whose files do not name them.
DEFAULT_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


class PreTrainedTokenizer(EncodingMixin, PretrainedMixin):
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
    is_fast = True

    chat_template: str

    def __init__(self, codec: Tokenizer, **settings: Any) -> None:
        self.init_kwargs, settings = split_kwargs(settings, CALL_KWARG_NAMES)
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
        tokenizer = cls(codec, **_read_settings(folder, codec) | settings)
        tokenizer.add_special_tokens(
            {name: settings[name] for name in SPECIAL_TOKEN_NAMES if settings.get(name) is not None}
        )
        return tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> Self:
        """Reads a tokenizer, as `PretrainedMixin.from_pretrained`, and sets its `name_or_path` to the given name."""
        tokenizer = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    def save_pretrained(self, save_directory: StrPath, **keywords: Any) -> tuple[str, ...]:
        """Writes tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja.

        Returns:
            The paths of the files.
        """
        check_save_kwargs(keywords)
        return self.write_files(Path(save_directory), self.chat_template)

    def write_files(self, folder: Path, chat_template: str) -> tuple[str, ...]:
        """Writes tokenizer.json, tokenizer_config.json and, if there is one, a chat template. Returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.codec.to_json(), encoding="utf-8")
        config = {
            **self.special_tokens_map,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "truncation_side": self.truncation_side,
        }
        if "image_seq_len" in self.init_kwargs:
            config["image_seq_len"] = self.init_kwargs["image_seq_len"]
        paths = [write_json(folder / "tokenizer_config.json", config), str(folder / "tokenizer.json")]
        if chat_template:
            (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
            paths.append(str(folder / "chat_template.jinja"))
        return tuple(paths)

    def apply_chat_template(
        self,
        conversation: Conversations,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
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
        """Renders a conversation, or a batch of them, with the chat template, and tokenizes the text.

        Args:
            tools, documents: variables of the template.
            chat_template: Jinja source in place of the checkpoint's.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end with the text of the last message, so that an answer continues it.
            tokenize: False returns the text.
            return_dict: with `tokenize`, return all that the call returns; False returns the ids alone.
            return_assistant_tokens_mask: also return `assistant_masks`, 1 for tokens within `{% generation %}`.
            tokenizer_kwargs: arguments of the call.
            variables: further variables of the template; `padding`, `truncation`, `max_length` and
                `pad_to_multiple_of` are arguments of the call.
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        options, variables = split_kwargs(variables, TOKENIZER_CALL_KWARG_NAMES)
        conversations: Any = conversation if is_batch else [conversation]
        rendered = [
            render_template(
                self.chat_template if chat_template is None else chat_template,
                turns,
                {**self.special_tokens_map, "tools": tools, "documents": documents, **variables},
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for turns in conversations
        ]
        texts = [one.text for one in rendered]
        if not tokenize:
            return texts if is_batch else texts[0]
        options |= {"add_special_tokens": False, "return_tensors": return_tensors, **(tokenizer_kwargs or {})}
        encoding = self(texts, return_offsets_mapping=return_assistant_tokens_mask, **options)
        if return_assistant_tokens_mask:
            spans = [one.generation_spans for one in rendered]
            encoding["assistant_masks"] = list(map(span_overlap_mask, encoding.pop("offset_mapping"), spans))
            encoding.convert_to_tensors(options["return_tensors"])
        if not is_batch and options["return_tensors"] is None:
            encoding = BatchFeature({name: rows[0] for name, rows in encoding.items()})
        return encoding if return_dict else encoding["input_ids"]


def _read_settings(folder: Path, codec: Tokenizer) -> dict[str, Any]:
    """The arguments of `PreTrainedTokenizer` that the files of a folder name, the chat template included."""
    config = read_json_object(folder / "tokenizer_config.json")
    names = ("image_seq_len", "padding_side", "truncation_side", "model_max_length")
    settings = {name: config[name] for name in names if config.get(name)}
    default_tokens = {
        name: token for name, token in DEFAULT_SPECIAL_TOKENS.items() if token in codec.added_token_contents
    }
    tokens = {**default_tokens, **codec.token_by_role}
    settings |= {name: tokens[name] for name in SPECIAL_TOKEN_NAMES if name in tokens}
    return {**settings, "chat_template": read_chat_template(folder)}


# Names of the guides. One class serves all of them, as tokenizer.json says how text is split.
GPT2TokenizerFast = LlamaTokenizer = LlamaTokenizerFast = PreTrainedTokenizerFast = PreTrainedTokenizer
