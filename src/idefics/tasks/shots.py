"""Shots as data: a JSONL file, one worked example a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from idefics.calls import public, short
from idefics.errors import BadPrompt
from idefics.messages import Shot

MOST_SHOTS = 32


@public
def read_shots(path: str | Path) -> list[Shot]:
    """Reads `{"image": ..., "answer": ..., "question": ...}` lines; "question" may be left out.

    An image is an address, a data URI, or a path: relative ones start at the file's folder.

    Raises:
        BadPrompt: no such file, too many lines, or a line that is not so; the message names the line.
    """
    given: object = path
    if not isinstance(given, (str, os.PathLike)):
        raise BadPrompt(f"path is {short(given)}; give the path of a JSONL file")
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
    shots = [_shot(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not 1 <= len(shots) <= MOST_SHOTS:
        raise BadPrompt(f"{path} holds {len(shots)} shots; give 1 to {MOST_SHOTS}, one JSON object a line")
    return shots


def _shot(line: str, path: Path, number: int) -> Shot:
    from idefics.processing.video import as_visual  # numpy and Pillow, without which `idefics --help` answers

    wanted = '{"image": "photo.jpg", "answer": "A puppy."}'
    try:
        row: Any = json.loads(line)
    except ValueError:
        raise BadPrompt(f"{path}, line {number} is not JSON: write {wanted}") from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("image", "answer")):
        raise BadPrompt(f'{path}, line {number} needs an "image" and an "answer": write {wanted}')
    if unknown := set(row) - {"image", "answer", "question"}:
        raise BadPrompt(
            f"{path}, line {number} has unknown fields {', '.join(sorted(unknown))}: write {wanted}"
        )
    image = row["image"]
    is_address = image.startswith(("http://", "https://", "data:"))
    picture = as_visual(image if is_address else path.parent / image)
    return Shot(picture, row["answer"], row.get("question", ""))
