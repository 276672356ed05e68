"""Reads the small files of a checkpoint folder about its inputs, in each layout that transformers has saved them in.

Finds the settings by file name and key; does not interpret them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idefics.errors import UnsupportedModel


def read_preprocessor_config(folder: str | Path) -> dict[str, Any]:
    """The image processor's settings of a checkpoint folder; {} where it has none.

    They are in preprocessor_config.json, or under "image_processor" in processor_config.json (transformers 5).

    Raises:
        UnsupportedModel: a file is not a JSON object.
    """
    folder = Path(folder)
    settings = read_json_object(folder / "preprocessor_config.json")
    return settings or read_json_object(folder / "processor_config.json").get("image_processor", {})


def read_chat_template(folder: str | Path) -> str:
    """The Jinja chat template of a checkpoint folder; "" where it has none.

    It is in chat_template.jinja (transformers 5), chat_template.json, processor_config.json or tokenizer_config.json:
    the first that has one decides, as newer files replace older ones.

    Raises:
        UnsupportedModel: a file is broken, or holds several templates none of which is named "default".
    """
    folder = Path(folder)
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path)
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json_object(folder / name).get("chat_template")
        if template:
            return _default_template(template, folder / name)
    return ""


def _default_template(template: str | list[Mapping[str, str]], path: Path) -> str:
    """The only template of a file, or the one named "default" if the file has a list of them.

    Raises:
        UnsupportedModel: none of several templates is named "default".
    """
    if isinstance(template, str):
        return template
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
        raise UnsupportedModel(f"{path} has the chat templates {', '.join(named)}: one must be named default")
    return named["default"]


def read_json_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where there is no such file.

    Raises:
        UnsupportedModel: the file is broken, or holds something else than an object.
    """
    if not path.exists():
        return {}
    try:
        settings = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UnsupportedModel(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(settings, dict):
        raise UnsupportedModel(
            f"{path} holds a {type(settings).__name__}, not a JSON object: download it again"
        )
    return settings


def read_text(path: Path) -> str:
    """The text of a file; raises UnsupportedModel if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnsupportedModel(f"{path} cannot be read ({type(error).__name__}): download it again") from None
