"""The parts of curl commands: form fields, keys, and JSON bodies with files as data URIs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def format_form_value(value: object) -> str:
    """A value as a form field: booleans in lower case, as in JSON."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def authorization_arguments(has_key: bool) -> list[str]:
    """The header with the key from the environment; nothing where the server has no key."""
    return ['-H "Authorization: Bearer $IDEFICS_API_KEY"'] if has_key else []


def is_url(name: str) -> bool:
    """Whether the name of a picture is its http(s) address."""
    return name.startswith(("http://", "https://"))


def image_url_or_data(name: str, files: list[str]) -> str:
    """The `image_url` of a picture: its address, or a data URI with a placeholder for the file, appended to `files`."""
    if is_url(name):
        return name
    files.append(name)
    return f"data:;base64,{_base64_marker(len(files) - 1)}"


def _base64_marker(index: int) -> str:
    """The text that stands for the base64 of file number `index` until the command is formatted."""
    return f"\ue000{index}\ue000"  # characters for private use, which no text contains


def format_json_post(url: str, body: Mapping[str, Any], files: Sequence[str], *, has_key: bool) -> str:
    """A command that pipes JSON into curl, with base64 of the files in place of their placeholders.

    `printf` is built into shells, so its arguments may be longer than those of a program.
    """
    json_text = json.dumps(body, indent=2, ensure_ascii=False).replace("'", r"\u0027")
    for number, name in enumerate(files):
        json_text = json_text.replace(
            _base64_marker(number), f"'\"$(base64 < {shlex.quote(name)} | tr -d '\\n')\"'"
        )
    parts = [
        f"curl {url}",
        *authorization_arguments(has_key),
        "-H 'Content-Type: application/json'",
        "--data-binary @-",
    ]
    return f"printf '%s' '{json_text}' |\n  " + " \\\n    ".join(parts) + "\n"
