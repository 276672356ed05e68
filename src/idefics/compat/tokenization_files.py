"""Reads the settings of a tokenizer from its files, and writes the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from idefics.compat.batch_feature import VERY_LARGE_INTEGER, Side
from idefics.compat.serialization import write_json
from idefics.compat.tokenization_vocabulary import SPECIAL_TOKEN_NAMES
from idefics.processing import checkpoint_settings
from idefics.processing.tokenizer import Tokenizer

# The special tokens of Llama's tokenizer, for checkpoints whose files do not name them.
DEFAULT_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


class SavableTokenizer(Protocol):
    """The attributes of a tokenizer that are written to its files."""

    codec: Tokenizer
    model_max_length: int
    padding_side: Side
    truncation_side: Side
    init_kwargs: dict[str, Any]

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by the names of their roles."""
        ...


def read_tokenizer_arguments(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The arguments of `PreTrainedTokenizer` that the files of a folder name, the chat template included."""
    files = {
        **checkpoint_settings.read_json_object(folder / "special_tokens_map.json"),
        **checkpoint_settings.read_json_object(folder / "tokenizer_config.json"),
    }
    plain_names = ("image_seq_len", "padding_side", "truncation_side")
    arguments = {name: files[name] for name in plain_names if files.get(name)}
    arguments["model_max_length"] = int(files.get("model_max_length") or VERY_LARGE_INTEGER)
    arguments["chat_template"] = checkpoint_settings.read_chat_template(folder)
    for name in SPECIAL_TOKEN_NAMES:
        default_token = (
            DEFAULT_SPECIAL_TOKENS[name]
            if DEFAULT_SPECIAL_TOKENS.get(name) in tokenizer.added_token_contents
            else None
        )
        arguments[name] = _token_content(files.get(name)) or default_token
    return arguments


def write_tokenizer(tokenizer: SavableTokenizer, folder: Path, chat_template: str) -> tuple[str, ...]:
    """Writes tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.codec.to_json(), encoding="utf-8")
    config = {
        **tokenizer.special_tokens_map,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": tokenizer.truncation_side,
    }
    if "image_seq_len" in tokenizer.init_kwargs:
        config["image_seq_len"] = tokenizer.init_kwargs["image_seq_len"]
    paths = [write_json(folder / "tokenizer_config.json", config), str(folder / "tokenizer.json")]
    return (*paths, *write_chat_template(folder, chat_template))


def write_chat_template(folder: Path, chat_template: str) -> list[str]:
    """Writes chat_template.jinja where there is a template. Returns its path, in a list."""
    if not chat_template:
        return []
    path = folder / "chat_template.jinja"
    path.write_text(chat_template, encoding="utf-8")
    return [str(path)]


def _token_content(token: str | Mapping[str, Any] | None) -> str | None:
    """The text of a special token, which files hold as a string or as an object with "content"."""
    return token["content"] if isinstance(token, Mapping) else token
