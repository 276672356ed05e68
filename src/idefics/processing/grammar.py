"""A form as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re

from idefics.structured import OutputConstraint

# One way to write a document: no answer is spent on blanks.
JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def lark_grammar(
    output_constraint: OutputConstraint, *, allow_leading_space: bool, max_characters: int | None = None
) -> str:
    """The grammar of a form.

    Args:
        allow_leading_space: whether one blank may stand before it, which belongs to how a first word is spelled.
        max_characters: of a regular expression, texts of at most so many characters.
    """
    start_rule = 'start: " "? body' if allow_leading_space else "start: body"
    return f"{start_rule}\n{_body_rules(output_constraint, max_characters)}"


def _body_rules(output_constraint: OutputConstraint, max_characters: int | None) -> str:
    if output_constraint.choices is not None:
        return "body: " + " | ".join(
            json.dumps(choice, ensure_ascii=False) for choice in output_constraint.choices
        )
    if output_constraint.regex is not None:
        import llguidance

        bound = "" if max_characters is None else f" & /(?s:.{{0,{max_characters}}})/"
        return f"body: BODY\nBODY: /{llguidance.regex_to_lark(output_constraint.regex, 'd')}/{bound}"
    return "body: %json " + json.dumps({**(output_constraint.schema or {}), "x-guidance": JSON_LAYOUT})


def summarize_error(error: str) -> str:
    """What llguidance says of a grammar, in one line and without the places in it."""
    if match := re.search(r"^error: (.+)", error, re.M):
        return match[1]
    return re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: )*", "", error.partition("\n")[0])
