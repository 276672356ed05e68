"""What layouts share: JSON and lines of their files, pictures in folders, and errors that name what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from idefics.batch.records import escape_surrogates
from idefics.batch.rows import Media
from idefics.batch.sources.settings import file_media
from idefics.errors import BadPrompt, BadSetting
from idefics.validation import short_repr


def read_json(path: Path) -> Any:
    """The content of a JSON file; the last few are kept, as an evaluation reads its data several times.

    Raises:
        BadSetting: it cannot be read.
    """
    try:
        return _read_json(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise BadSetting(f"{path} cannot be read as JSON: {error}") from None


@lru_cache(maxsize=4)
def _read_json(path: Path, _mtime_ns: int) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def read_json_lines(path: Path) -> Iterator[Any]:
    """The content of each line of a JSONL file; blank lines are left out.

    Raises:
        BadSetting: it cannot be read, or a line is malformed.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError:
                        raise BadSetting(f"{path}, line {number} is not JSON") from None
    except OSError as error:
        raise BadSetting(f"{path} cannot be read: {error.strerror or error}") from None


def find_file(folder: Path, *patterns: str) -> Path:
    """The first file that fits one of the patterns, in the order of the patterns, then of the names.

    Raises:
        BadSetting: there is none.
    """
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    raise BadSetting(
        f"{folder} has no {' or '.join(patterns)}: docs/evaluation.md says how the folder is laid out"
    )


def picture(folder: Path, *names: str) -> Media:
    """A picture in a folder: the first of the names that is there, else the first."""
    paths = [folder / name for name in names]
    path = next((one for one in paths if one.is_file()), paths[0])
    return file_media(path, escape_surrogates(str(path)))


def text_list(value: Any, key: str = "answer") -> tuple[str, ...]:
    """The texts of a list: of texts, numbers, or dicts with a text under `key`; a single one is a list of one.

    Blank texts are left out. A number without a fraction is written as a whole number: 4.0 as "4".

    Raises:
        BadPrompt: it is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        value = [value]
    texts = (_text(one, key) for one in value)
    return tuple(text for text in texts if text)


def _text(value: Any, key: str) -> str:
    """The text of an item of `text_list`, without blanks around it; "" if there is none."""
    if isinstance(value, Mapping) and key in value:
        value = value[key]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int, float)):
        raise BadPrompt(f"a right answer is {short_repr(value)}: give a text or a list of texts")
    return str(value).strip()
