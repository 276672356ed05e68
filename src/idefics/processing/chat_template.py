"""Renders a checkpoint's Jinja chat template as transformers' `apply_chat_template` does.

Takes messages as plain data; independent of token ids and pictures.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from idefics.errors import BadPrompt, UnsupportedModel

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser

# Markers hold a random number of this process, so that no message can contain one.
SECRET = secrets.randbits(128)
CONTINUATION_MARKER, GENERATION_START_MARKER, GENERATION_END_MARKER = (
    f"\ue000{SECRET}{mark}" for mark in "\ue003\ue004\ue005"
)


class RenderedTemplate(NamedTuple):
    """The output of a chat template.

    Attributes:
        text: the prompt.
        generation_spans: (start, end) in characters of each `{% generation %}` block: the assistant's text.
    """

    text: str
    generation_spans: list[tuple[int, int]]


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
) -> RenderedTemplate:
    """Renders messages with a template. Special tokens in their text cannot be told from the template's own afterwards.

    Args:
        template: Jinja source. It may use `{% generation %}`, loop controls, `raise_exception`, `strftime_now`, and
            `tojson`, which writes as `json.dumps` does (no escapes for HTML or other scripts, keys in their order).
        messages: each a role and a content: text, or a list of parts.
        variables: what else the template reads, such as `bos_token`; `tools` and `documents` default to None. Values
            that are not JSON data are replaced by the name of their type.
        add_generation_prompt: whether the beginning of an answer is appended.
        continue_final_message: whether the prompt ends where the last text of the last message ends, so that the answer
            continues it; a string names another field than "content". Spaces at the end stay if the template keeps
            them.

    Raises:
        BadPrompt: the template refuses the messages, or the last message has no text to continue.
        UnsupportedModel: there is no template, or it is broken.
    """
    if not template:
        raise UnsupportedModel(
            "this checkpoint has no chat template: give it a raw prompt (generate), "
            "or use an instruct checkpoint"
        )
    plain_messages = [_to_plain_data(message) for message in messages]
    if continue_final_message:
        if add_generation_prompt:
            raise BadPrompt(
                "add_generation_prompt and continue_final_message are both true: give one, as the answer either "
                "begins a new turn or continues the last message"
            )
        _insert_continuation_marker(
            plain_messages, "content" if continue_final_message is True else continue_final_message
        )
    try:
        text = _compile_template(template).render(
            messages=plain_messages,
            add_generation_prompt=add_generation_prompt,
            **_to_plain_data({"tools": None, "documents": None, **(variables or {})}),
        )
    except TemplateRefusal as refusal:
        raise BadPrompt(f"this checkpoint's chat template refuses the conversation: {refusal}") from None
    except Exception as error:  # jinja2's own, and whatever the template's expressions raise
        reason = str(error) or type(error).__name__
        raise UnsupportedModel(f"this checkpoint's chat template is broken: {reason}") from None
    return _extract_generation_spans(_cut_at_continuation_marker(text) if continue_final_message else text)


class TemplateRefusal(Exception):
    """Raised inside a template that calls `raise_exception`; its text is the template's message."""


def _to_plain_data(value: Any) -> Any:
    """A copy of JSON data in which other objects, such as pictures, are replaced by the name of their type."""
    if isinstance(value, Mapping):
        return {_to_plain_data(key): _to_plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain_data(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return str.__str__(value) if isinstance(value, str) else f"<{type(value).__name__}>"


def _insert_continuation_marker(messages: list[dict[str, Any]], field: str) -> None:
    """Appends a marker to the text in `field` of the last message, in place; raises BadPrompt if it has no text."""
    content = messages[-1].get(field) if messages else None
    if isinstance(content, str):
        messages[-1][field] = f"{content}{CONTINUATION_MARKER} "
        return
    texts = [part for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not texts:
        raise BadPrompt(
            f"continue_final_message is given, but the last message has no text in its {field}: "
            "end the messages with the words that the answer shall continue"
        )
    texts[-1]["text"] += f"{CONTINUATION_MARKER} "


def _cut_at_continuation_marker(text: str) -> str:
    """The rendered text before the marker; its last spaces are removed if the template trims the text of messages.

    Raises:
        BadPrompt: the template left the last message out.
    """
    before, marker, after = text.rpartition(CONTINUATION_MARKER)
    if not marker:
        raise BadPrompt(
            "continue_final_message is given, but this checkpoint's chat template leaves the last message out"
        )
    return before if after.startswith(" ") else before.rstrip()


def _extract_generation_spans(marked_text: str) -> RenderedTemplate:
    """Removes the markers of `{% generation %}` blocks from a text and returns where they were."""
    text, generation_spans, start = "", list[tuple[int, int]](), None
    for part in re.split(f"({GENERATION_START_MARKER}|{GENERATION_END_MARKER})", marked_text):
        if part == GENERATION_START_MARKER:
            start = len(text)
        elif part == GENERATION_END_MARKER:
            generation_spans.append((len(text) if start is None else start, len(text)))
            start = None
        else:
            text += part
    if start is not None:  # cut within a block, which then reaches to the end
        generation_spans.append((start, len(text)))
    return RenderedTemplate(text, generation_spans)


@lru_cache(maxsize=8)
def _compile_template(template: str) -> jinja2.Template:
    """Compiles a template with the settings, filters and functions that transformers provides."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_extension(), "jinja2.ext.loopcontrols"]
    )
    # As in transformers: jinja2's own filter escapes for HTML and sorts keys.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_refusal
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _generation_extension() -> type[jinja2.ext.Extension]:
    """The Jinja extension for `{% generation %}`, which puts markers around its content."""
    import jinja2.ext
    import jinja2.nodes

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012  # read by jinja2

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Callable[[], str]) -> str:
            return f"{GENERATION_START_MARKER}{caller()}{GENERATION_END_MARKER}"

    return Generation


def _raise_refusal(message: str) -> NoReturn:
    """Raises TemplateRefusal: the function that templates call as `raise_exception`."""
    raise TemplateRefusal(message)
