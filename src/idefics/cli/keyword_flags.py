"""Replaces Python's keywords in error messages by flags: `max_new_tokens` is printed as `--max-new-tokens`."""

from __future__ import annotations

import re
from dataclasses import fields

from idefics.cli.flags import ModelFlags
from idefics.cli.sampling import SamplingFlags
from idefics.server.settings import Settings

KEYWORD_NAMES = (
    *dict.fromkeys(field.name for group in (ModelFlags, SamplingFlags, Settings) for field in fields(group)),
    "length_normalized",
)


def keywords_as_flags(message: str) -> str:
    """The message with Python's keywords as flags: "use num_beams=1" -> "use --num-beams 1"."""
    for name in KEYWORD_NAMES:
        flag = "--" + name.replace("_", "-")
        message = re.sub(rf"(?<![\w-]){name}=True\b", flag, message)
        message = re.sub(rf"(?<![\w-]){name}=(?=\S)", f"{flag} ", message)
        message = re.sub(rf"^{name} (is|cannot) ", rf"{flag} \1 ", message)
        if "_" in name:
            message = re.sub(rf"(?<![\w./-]){name}(?![\w./-])", flag, message)
    return message
