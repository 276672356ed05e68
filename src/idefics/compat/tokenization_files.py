"""The files of a tokenizer: what they say of its tokens, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from idefics.compat.features import NO_LIMIT, Side
from idefics.compat.folders import write_json
from idefics.compat.tokenization_tokens import NAMED
from idefics.processing import settings
from idefics.processing.tokenizer import Tokenizer

# What a Llama tokenizer calls its tokens, where no file says otherwise.
CUSTOMARY = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


class Writable(Protocol):
    """What of a tokenizer is written."""

    codec: Tokenizer
    model_max_length: int
    padding_side: Side
    truncation_side: Side
    init_kwargs: dict[str, Any]

    @property
    def special_tokens_map(self) -> dict[str, str]: ...


def arguments_in(folder: Path, codec: Tokenizer) -> dict[str, Any]:
    """The arguments of a tokenizer: from tokenizer_config.json, special_tokens_map.json, and its template's file."""
    files = {
        **settings.json_object(folder / "special_tokens_map.json"),
        **settings.json_object(folder / "tokenizer_config.json"),
    }
    said = ("image_seq_len", "padding_side", "truncation_side")
    known = {name: files[name] for name in said if files.get(name)}
    known["model_max_length"] = int(files.get("model_max_length") or NO_LIMIT)
    known["chat_template"] = settings.chat_template(folder)
    for name in NAMED:
        customary = CUSTOMARY[name] if CUSTOMARY.get(name) in codec.added else None
        known[name] = _content(files.get(name)) or customary
    return known


def write_tokenizer(tokenizer: Writable, folder: Path, chat_template: str) -> tuple[str, ...]:
    """Writes tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.codec.to_json(), encoding="utf-8")
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    config = {
        **named,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "truncation_side": tokenizer.truncation_side,
    }
    if "image_seq_len" in tokenizer.init_kwargs:
        config["image_seq_len"] = tokenizer.init_kwargs["image_seq_len"]
    write_json(folder / "tokenizer_config.json", config)
    names = ["tokenizer_config.json", "tokenizer.json"]
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        names.append("chat_template.jinja")
    return tuple(str(folder / name) for name in names)


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    """A special token is written as a string, or as an object with its properties."""
    return token["content"] if isinstance(token, Mapping) else token
