"""A form as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re

from idefics.form import Form

# One way to write a document: no answer is spent on blanks.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar(form: Form, *, is_spaced: bool, most: int | None = None) -> str:
    """The grammar of a form.

    Args:
        is_spaced: whether one blank may stand before it, which belongs to how a first word is spelled.
        most: of a regular expression, texts of at most so many characters.
    """
    start = 'start: " "? body' if is_spaced else "start: body"
    return f"{start}\n{_body(form, most)}"


def _body(form: Form, most: int | None) -> str:
    if form.choices is not None:
        return "body: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in form.choices)
    if form.regex is not None:
        import llguidance

        bound = "" if most is None else f" & /(?s:.{{0,{most}}})/"
        return f"body: BODY\nBODY: /{llguidance.regex_to_lark(form.regex, 'd')}/{bound}"
    return "body: %json " + json.dumps({**(form.schema or {}), "x-guidance": LAYOUT})


def complaint(error: str) -> str:
    """What llguidance says of a grammar, in one line and without the places in it."""
    if found := re.search(r"^error: (.+)", error, re.M):
        return found[1]
    return re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: )*", "", error.partition("\n")[0])
