"""Reads the settings of a tokenizer from its files, and writes the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.compat.batch_feature import VERY_LARGE_INTEGER
from idefics.compat.serialization import write_json
from idefics.compat.tokenization_vocabulary import SPECIAL_TOKEN_NAMES
from idefics.processing.checkpoint_settings import read_chat_template, read_json_object
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    from idefics.compat.tokenization import PreTrainedTokenizer

# The special tokens of Llama's tokenizer, for checkpoints whose files do not name them.
DEFAULT_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def read_tokenizer_arguments(folder: Path, codec: Tokenizer) -> dict[str, Any]:
    """The arguments of `PreTrainedTokenizer` that the files of a folder name, the chat template included."""
    config = read_json_object(folder / "tokenizer_config.json")
    plain_names = ("image_seq_len", "padding_side", "truncation_side")
    arguments = {name: config[name] for name in plain_names if config.get(name)}
    arguments["model_max_length"] = int(config.get("model_max_length") or VERY_LARGE_INTEGER)
    arguments["chat_template"] = read_chat_template(folder)
    default_tokens = {
        name: token for name, token in DEFAULT_SPECIAL_TOKENS.items() if token in codec.added_token_contents
    }
    tokens = {**default_tokens, **codec.token_by_role}
    return {**arguments, **{name: tokens[name] for name in SPECIAL_TOKEN_NAMES if name in tokens}}


def write_tokenizer(tokenizer: PreTrainedTokenizer, folder: Path, chat_template: str) -> tuple[str, ...]:
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
