"""Writes an `OutputConstraint` as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re

from idefics.structured import OutputConstraint

# JSON is written in one layout, so that no tokens are spent on white space.
JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def lark_grammar(
    output_constraint: OutputConstraint, *, allow_leading_space: bool, max_characters: int | None = None
) -> str:
    """The grammar of the texts that satisfy a constraint.

    Args:
        allow_leading_space: whether one space may precede the text, as most first words are spelled with one.
        max_characters: only texts of at most this many characters; for regular expressions alone.
    """
    start_rule = 'start: " "? body' if allow_leading_space else "start: body"
    return f"{start_rule}\n{_body_rules(output_constraint, max_characters)}"


def _body_rules(output_constraint: OutputConstraint, max_characters: int | None) -> str:
    """The grammar's rule `body`, what the text consists of after a leading space, and the rules that it uses."""
    if output_constraint.choices is not None:
        return "body: " + " | ".join(
            json.dumps(choice, ensure_ascii=False) for choice in output_constraint.choices
        )
    if output_constraint.regex is not None:
        import llguidance

        bound = "" if max_characters is None else f" & /(?s:.{{0,{max_characters}}})/"
        return f"body: BODY\nBODY: /{llguidance.regex_to_lark(output_constraint.regex, 'd')}/{bound}"
    return "body: %json " + json.dumps({**(output_constraint.schema or {}), "x-guidance": JSON_LAYOUT})


def summarize_llguidance_error(error: str) -> str:
    """llguidance's error message about a grammar in one line, without line and column numbers."""
    if match := re.search(r"^error: (.+)", error, re.M):
        return match[1]
    return re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: )*", "", error.partition("\n")[0])
