"""A conversation through a checkpoint's chat template into trusted pieces, plain pieces, pictures and videos.

Knows messages and what a template writes; does not know tokens or pixels. What a user or an earlier answer says never
passes through the template: a placeholder that nobody can guess does, so that neither a token nor the
template's logic can be forged.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from idefics.errors import BadPrompt
from idefics.messages import Message, Picture, Role, Video, Visual
from idefics.processing.templates import render_template
from idefics.processing.tokenizer import Piece

IMAGE = "<image>"  # what every template of the family writes where a picture stands
ROLES = get_args(Role)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    answer_start: str = "",
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[Piece | Visual]:
    """The prompt for the next answer. A video is a text to the template: it will be read as words and pictures.

    Args:
        template: Jinja source; it sees `messages` (each a role and a list of text and image parts),
            `add_generation_prompt`, true, and `variables`.
        messages: the conversation so far.
        answer_start: words that the answer begins with; a space goes before them.
        continue_final_message: the last message is the assistant's, and the answer goes on with its text: the prompt
            ends where that text ends.
        variables: what else the template may read, such as `bos_token`.

    Raises:
        BadPrompt: no messages, the template refuses them or drops one of their pictures, or the last message is the
            assistant's where none shall be continued, or the other way round.
        UnsupportedModel: there is no template, or it is broken.
    """
    _check_end(messages, answer_start, continue_final_message)
    slots = _Slots()
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": slots.text(part)}
                for part in message.parts
            ],
        }
        for message in messages
    ]
    pictures = [part for message in messages for part in message.parts if isinstance(part, Picture)]
    rendered = render_template(
        template,
        turns,
        variables,
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
    ).text
    if rendered.count(IMAGE) != len(pictures):
        raise BadPrompt(
            f"the conversation has {len(pictures)} pictures, but this checkpoint's chat template places "
            f"{rendered.count(IMAGE)}: put them into turns of the user"
        )
    start = [Piece(" " + answer_start, trusted=False)] if answer_start else []
    return [*slots.reveal(rendered, pictures), *start]


def _check_end(messages: Sequence[Message], answer_start: str, continue_final_message: bool) -> None:
    """Refuses a conversation whose last message does not say whether the answer continues it or follows it."""
    if not messages:
        raise BadPrompt("the conversation is empty: give at least one message")
    last = messages[-1]
    if not continue_final_message:
        if last.role == "assistant":
            raise BadPrompt(
                "the last message is the assistant's: set continue_final_message to go on with its text, "
                "or end with a message of the user"
            )
        return
    if answer_start:
        raise BadPrompt(
            "answer_start and continue_final_message are both given: write the words at the end of the last message"
        )
    if last.role != "assistant" or not isinstance(next(reversed(last.parts), None), str):
        given = f"the {last.role}'s" if last.role != "assistant" else "one that ends with a picture"
        raise BadPrompt(
            f"continue_final_message is true, but the last message is {given}: end the conversation with text of "
            "the assistant"
        )


class _Slots:
    """Placeholders for what is said: digits between private-use characters, the same in any case."""

    def __init__(self) -> None:
        self.hidden: list[str | Video] = []
        self.start = f"\ue000{secrets.randbits(128)}\ue001"

    def text(self, part: str | Video) -> str:
        """What the template sees of it: a placeholder; blanks around stay outside, so that a template may trim them."""
        if isinstance(part, Video):
            return self._hide(part)
        core = part.strip()
        if not core:
            return part
        before, after = part.split(core, 1)
        return f"{before}{self._hide(core)}{after}"

    def _hide(self, part: str | Video) -> str:
        self.hidden.append(part)
        return f"{self.start}{len(self.hidden) - 1}\ue002"

    def reveal(self, rendered: str, pictures: Iterable[Picture]) -> Iterator[Piece | Visual]:
        """Trusted text, what is behind placeholders (texts as plain ones), and the pictures."""
        waiting = iter(pictures)
        for text in re.split(f"({IMAGE}|{self.start}[0-9]+\ue002)", rendered):
            if text == IMAGE:
                yield next(waiting)
            elif text.startswith(self.start):
                part = self.hidden[int(text[len(self.start) : -1])]
                yield part if isinstance(part, Video) else Piece(part, trusted=False)
            elif text:
                yield Piece(text, trusted=True)
