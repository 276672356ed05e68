"""Shots as data: a JSONL file, one worked example a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from idefics.errors import BadPrompt
from idefics.messages import Shot
from idefics.validation import reject_unknown_arguments, short_repr

MAX_SHOTS = 32


@reject_unknown_arguments
def read_shots(path: str | Path) -> list[Shot]:
    """Reads `{"image": ..., "answer": ..., "question": ...}` lines; "question" may be left out.

    An image is an address, a data URI, or a path: relative ones start at the file's folder.

    Raises:
        BadPrompt: no such file, too many lines, or a line that is not so; the message names the line.
    """
    value: object = path
    if not isinstance(value, (str, os.PathLike)):
        raise BadPrompt(f"path is {short_repr(value)}; give the path of a JSONL file")
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadPrompt(f"{path}: no such file") from None
    except OSError as error:
        raise BadPrompt(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise BadPrompt(f"{path} is not text in UTF-8: give one JSON object per line") from None
    return parse_shots(text, path)


def parse_shots(text: str, path: Path) -> list[Shot]:
    """The worked examples of a JSONL text.

    Args:
        path: of its file, for messages; relative paths of pictures start at its folder.

    Raises:
        BadPrompt: too many lines, or a line that is not a shot; the message names the line.
    """
    lines = text.split("\n")  # JSON may hold the other characters that end lines elsewhere
    shots = [_parse_shot(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not 1 <= len(shots) <= MAX_SHOTS:
        raise BadPrompt(f"{path} holds {len(shots)} shots; give 1 to {MAX_SHOTS}, one JSON object a line")
    return shots


def _parse_shot(line: str, path: Path, number: int) -> Shot:
    from idefics.processing.video import (
        to_picture_or_video,
    )  # numpy and Pillow, without which `idefics --help` answers

    example = '{"image": "photo.jpg", "answer": "A puppy."}'
    try:
        row: Any = json.loads(line)
    except ValueError:
        raise BadPrompt(f"{path}, line {number} is not JSON: write {example}") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("image", "answer")):
        raise BadPrompt(f'{path}, line {number} needs an "image" and an "answer": write {example}')
    if unknown_fields := set(row) - {"image", "answer", "question"}:
        raise BadPrompt(
            f"{path}, line {number} has unknown fields {', '.join(sorted(unknown_fields))}: write {example}"
        )
    image = row["image"]
    is_address = image.startswith(("http://", "https://", "data:"))
    picture = to_picture_or_video(image if is_address else path.parent / image)
    return Shot(picture, row["answer"], row.get("question", ""))
