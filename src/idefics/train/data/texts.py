"""Checks the texts of training data."""

from __future__ import annotations

import math

from idefics.errors import BadPrompt
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.validation import describe_type, reject_lone_surrogates


def check_text(name: str, field: str, value: object) -> str:
    """A value as text.

    Args:
        name: of the row, or of a part of it.
        field: the column or key that holds the value.

    Raises:
        BadPrompt: it is neither text nor a number, has half of a character, or has an `<image>` of its own, which would
            be learned as seven characters.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        what = describe_type(value) if not isinstance(value, float) else "no number"
        raise BadPrompt(f"{name}: {field} is {what}; give a text")
    if not value.isascii():
        reject_lone_surrogates(f"{name}: {field}", value)
    if IMAGE_TOKEN in value:
        raise BadPrompt(
            f"{name}: {field} has {IMAGE_TOKEN} in its text, which is no picture: leave it out (pictures stand before "
            'the question), or place pictures with messages, as in {"type": "image"}'
        )
    return value
