"""A checkpoint's Jinja chat template, rendered as transformers' `apply_chat_template` renders it.

Knows templates and plain data; does not know messages' types, tokens or pictures.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from idefics.errors import BadPrompt, UnsupportedModel

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser

# Text between private-use characters, which no message of another process can hold.
SECRET = secrets.randbits(128)
CONTINUED, BEGIN, END = (f"\ue000{SECRET}{mark}" for mark in "\ue003\ue004\ue005")


# What a template's expressions may raise, apart from jinja2's own errors.
BROKEN = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
    RecursionError,
)


class Rendered(NamedTuple):
    """What a template has written.

    Attributes:
        text: the prompt.
        generated: (start, end) in characters of each `{% generation %}` block: what the assistant says.
    """

    text: str
    generated: list[tuple[int, int]]


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
) -> Rendered:
    """What a template makes of messages as they are: special tokens in their text are not told apart from its own.

    Args:
        template: Jinja source: with `{% generation %}`, loop controls, `raise_exception`, `strftime_now`, `tojson` as
            `json.dumps` writes (no escapes for HTML or other scripts, keys in their order).
        messages: each a role and a content: text, or a list of parts.
        variables: what else the template reads, such as `bos_token`; `tools` and `documents` are None unless they are
            among them. What is not plain data is seen as the name of its type.
        add_generation_prompt: whether the beginning of an answer follows.
        continue_final_message: the text ends where the last text of the last message ends, so that it can go on; a
            string names another field than "content". Spaces at its end stay if the template keeps them.

    Raises:
        BadPrompt: the template refuses the messages, or the last message has no text to continue.
        UnsupportedModel: there is no template, or it is broken.
    """
    import jinja2

    if not template:
        raise UnsupportedModel(
            "this checkpoint has no chat template: give it a raw prompt (generate), "
            "or use an instruct checkpoint"
        )
    seen = [_plain(message) for message in messages]
    if continue_final_message:
        if add_generation_prompt:
            raise BadPrompt(
                "add_generation_prompt and continue_final_message are both true: give one, as the answer either "
                "begins a new turn or goes on with the last message"
            )
        _mark_final(seen, "content" if continue_final_message is True else continue_final_message)
    try:
        text = _compile(template).render(
            messages=seen,
            add_generation_prompt=add_generation_prompt,
            **_plain({"tools": None, "documents": None, **(variables or {})}),
        )
    except Refusal as refusal:
        raise BadPrompt(f"this checkpoint's chat template refuses the conversation: {refusal}") from None
    except (jinja2.TemplateError, *BROKEN) as error:
        said = str(error) or type(error).__name__
        raise UnsupportedModel(f"this checkpoint's chat template is broken: {said}") from None
    return _spans(_cut(text) if continue_final_message else text)


class Refusal(Exception):
    """A template called `raise_exception`."""


def _plain(value: Any) -> Any:
    """A copy of JSON data; anything else, such as a picture, becomes the name of its type, and offers no methods."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    return str.__str__(value) if isinstance(value, str) else f"<{type(value).__name__}>"


def _mark_final(messages: list[dict[str, Any]], field: str) -> None:
    """Puts a mark behind the last text of the last message."""
    content = messages[-1].get(field) if messages else None
    if isinstance(content, str):
        messages[-1][field] = f"{content}{CONTINUED} "
        return
    texts = [part for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not texts:
        raise BadPrompt(
            f"continue_final_message is given, but the last message has no text in its {field}: "
            "end the messages with the words that the answer shall go on from"
        )
    texts[-1]["text"] += f"{CONTINUED} "


def _cut(text: str) -> str:
    """The text before the mark; without spaces at its end if the template trims them."""
    before, mark, after = text.rpartition(CONTINUED)
    if not mark:
        raise BadPrompt(
            "continue_final_message is given, but this checkpoint's chat template leaves the last message out"
        )
    return before if after.startswith(" ") else before.rstrip()


def _spans(marked: str) -> Rendered:
    """Takes the marks of `{% generation %}` blocks out of a text, and says where they were."""
    text, generated, start = "", list[tuple[int, int]](), None
    for part in re.split(f"({BEGIN}|{END})", marked):
        if part == BEGIN:
            start = len(text)
        elif part == END:
            generated.append((len(text) if start is None else start, len(text)))
            start = None
        else:
            text += part
    if start is not None:  # cut within a block: what follows is generated too
        generated.append((start, len(text)))
    return Rendered(text, generated)


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """With the settings, filters and functions that templates are written for."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _generation_tag() -> type[jinja2.ext.Extension]:
    """The tag `{% generation %}`, which puts marks around what it holds."""
    import jinja2.ext
    import jinja2.nodes

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012  # as jinja2 wants it

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Callable[[], str]) -> str:
            return f"{BEGIN}{caller()}{END}"

    return Generation


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes it: jinja2's own filter escapes for HTML and sorts keys."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise Refusal(message)
