"""Reads few-shot examples from a JSONL file, one example per line."""

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
    """Reads few-shot examples from a JSONL file, for `Idefics.with_shots`.

    Each line is `{"image": ..., "answer": ..., "question": ...}`; "question" is optional. An image is a URL, a data URI
    or a path; a relative path starts at the file's folder.

    Args:
        path: the JSONL file, in UTF-8, with 1 to 32 examples.

    Returns:
        The examples, in the order of the file.

    Raises:
        BadPrompt: the file cannot be read, holds no or too many examples, or has a malformed line; the message names
            the line.

    Examples:
        >>> vlm = idefics.load("demo").with_shots(idefics.read_shots("shots.jsonl"))
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
    """Parses the text of a JSONL file of few-shot examples; see `read_shots`.

    Args:
        text: the file's text.
        path: the file, for error messages; relative paths of pictures start at its folder.

    Returns:
        The examples, in the order of the lines.

    Raises:
        BadPrompt: there are no or too many examples, or a line is malformed; the message names the line.
    """
    lines = text.split(
        "\n"
    )  # not splitlines(): JSON strings may contain the other line separators of Unicode
    shots = [_parse_shot(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not 1 <= len(shots) <= MAX_SHOTS:
        raise BadPrompt(f"{path} holds {len(shots)} shots; give 1 to {MAX_SHOTS}, one JSON object a line")
    return shots


def _parse_shot(line: str, path: Path, number: int) -> Shot:
    """Parses one line of a JSONL file of few-shot examples.

    Args:
        path: the file, for error messages; relative paths of pictures start at its folder.
        number: the number of the line, from 1, for error messages.

    Raises:
        BadPrompt: the line is malformed.
    """
    # Imports NumPy and Pillow, which `idefics --help` does not need.
    from idefics.processing.video import to_picture_or_video

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
    is_url = image.startswith(("http://", "https://", "data:"))
    picture = to_picture_or_video(image if is_url else path.parent / image)
    return Shot(picture, row["answer"], row.get("question", ""))
