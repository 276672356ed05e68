"""Renders a conversation with a checkpoint's chat template into trusted text, plain text, pictures and videos.

The text of messages never passes through the template. An unguessable placeholder takes its place, so that a message
can neither forge special tokens nor change what the template does. Independent of token ids and pixels.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from idefics.errors import BadPrompt, UnsupportedModel
from idefics.messages import Message, Picture, PictureOrVideo, Video
from idefics.processing.chat_template import render_template
from idefics.processing.tokenizer import TextPiece

IMAGE_TOKEN = "<image>"  # what every template of the IDEFICS family writes for a picture
PLACEHOLDER_END = "\ue002"


def render_conversation(
    template: str,
    messages: Sequence[Message],
    *,
    answer_start: str = "",
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[TextPiece | PictureOrVideo]:
    """Renders the prompt for the next answer, as pieces of text, pictures and videos in their order.

    The template gets a video as a text part, since most templates do not support videos.

    Args:
        template: Jinja source; it reads `messages` (each a role and a list of text and image parts),
            `add_generation_prompt` and `variables`.
        messages: the conversation so far.
        answer_start: words that the answer begins with; a space is put before them.
        continue_final_message: the last message is the assistant's, and the answer continues its text: the prompt ends
            where that text ends.
        variables: what else the template may read, such as `bos_token`.

    Raises:
        BadPrompt: there are no messages, the template refuses them or drops one of their pictures, or the last message
            is the assistant's without `continue_final_message`, or the user's with it.
        UnsupportedModel: there is no template, or it is broken.
    """
    _check_last_message(messages, answer_start, continue_final_message)
    conversation = _TemplateConversation(messages)
    rendered = render_template(
        template,
        conversation.messages,
        variables,
        add_generation_prompt=not continue_final_message,
        continue_final_message=continue_final_message,
    ).text
    conversation.check_num_pictures(rendered)
    answer_pieces = [TextPiece(" " + answer_start, trusted=False)] if answer_start else []
    return [*conversation.restore(rendered), *answer_pieces]


def render_learned_conversation(
    template: str,
    messages: Sequence[Message],
    turn_end_tokens: Collection[str],
    *,
    variables: Mapping[str, Any] | None = None,
) -> list[list[TextPiece | PictureOrVideo]]:
    """Renders a conversation in passages: what the model is given and what it has to write, by turns.

    The first passage is the prompt of `render_conversation` for the first answer. The second is that answer with the
    token that ends it, the third what the prompt for the next answer has after that, and so on; the last is an answer.

    Args:
        template, variables: as for `render_conversation`.
        messages: the conversation; the last message is the assistant's.
        turn_end_tokens: the tokens that end an answer.

    Raises:
        BadPrompt: the template refuses the messages, or drops one of their pictures.
        UnsupportedModel: there is no template, it is broken, or it writes answers without a token that ends them, or
            otherwise than it prompts for them.
    """
    conversation = _TemplateConversation(messages)
    rendered = render_template(template, conversation.messages, variables, add_generation_prompt=False).text
    conversation.check_num_pictures(rendered)
    passages, end = [], 0
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = render_template(template, conversation.messages[:index], variables).text
        until_next = render_template(
            template, conversation.messages[: index + 1], variables, add_generation_prompt=False
        ).text
        if not (rendered.startswith(until_next) and until_next.startswith(prompt)):
            raise UnsupportedModel(
                "this checkpoint's chat template writes an answer otherwise than it prompts for one: answers cannot "
                "be learned with it"
            )
        last_text = max(until_next.rfind(PLACEHOLDER_END), len(prompt))
        found = [(until_next.find(token, last_text), token) for token in turn_end_tokens]
        turn_end = min((at + len(token) for at, token in found if at >= 0), default=None)
        if turn_end is None:
            raise UnsupportedModel(
                "this checkpoint's chat template ends an answer without a token that ends answers "
                f"({', '.join(sorted(turn_end_tokens))}): answers cannot be learned with it"
            )
        for start, stop in ((end, len(prompt)), (len(prompt), turn_end)):
            passages.append(list(conversation.restore(rendered[start:stop])))
        end = turn_end
    return passages


def _check_last_message(messages: Sequence[Message], answer_start: str, continue_final_message: bool) -> None:
    """Raises BadPrompt if the last message does not fit `answer_start` and `continue_final_message`."""
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


class _TemplateConversation:
    """A conversation with placeholders for its texts and videos, while its template is rendered.

    A placeholder is unguessable digits between private-use characters, which templates cannot upper-case.

    Attributes:
        pictures: of all messages.
        messages: as the template gets them.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self.replaced_parts: list[str | Video] = []
        self.placeholder_prefix = f"\ue000{secrets.randbits(128)}\ue001"
        self.pictures = [part for message in messages for part in message.parts if isinstance(part, Picture)]
        self._remaining_pictures = iter(self.pictures)
        self.messages: list[dict[str, Any]] = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"}
                    if isinstance(part, Picture)
                    else {"type": "text", "text": self.to_template_text(part)}
                    for part in message.parts
                ],
            }
            for message in messages
        ]

    def to_template_text(self, part: str | Video) -> str:
        """The text that the template gets for a part: its placeholder, between the outer spaces of a text."""
        if isinstance(part, Video):
            return self._create_placeholder(part)
        core = part.strip()
        if not core:
            return part
        before, after = part.split(core, 1)
        return f"{before}{self._create_placeholder(core)}{after}"

    def _create_placeholder(self, part: str | Video) -> str:
        """Stores a part for `restore` and returns a new placeholder for it."""
        self.replaced_parts.append(part)
        return f"{self.placeholder_prefix}{len(self.replaced_parts) - 1}{PLACEHOLDER_END}"

    def check_num_pictures(self, rendered: str) -> None:
        """Raises BadPrompt if a template has not placed all pictures of the conversation."""
        if rendered.count(IMAGE_TOKEN) != len(self.pictures):
            raise BadPrompt(
                f"the conversation has {len(self.pictures)} pictures, but this checkpoint's chat template places "
                f"{rendered.count(IMAGE_TOKEN)}: put them into turns of the user"
            )

    def restore(self, rendered: str) -> Iterator[TextPiece | PictureOrVideo]:
        """The rendered text as trusted pieces, with placeholders and image tokens replaced by the parts themselves.

        Of a text that is rendered in pieces, these are to be given in their order.
        """
        for text in re.split(f"({IMAGE_TOKEN}|{self.placeholder_prefix}[0-9]+{PLACEHOLDER_END})", rendered):
            if text == IMAGE_TOKEN:
                yield next(self._remaining_pictures)
            elif text.startswith(self.placeholder_prefix):
                part = self.replaced_parts[int(text[len(self.placeholder_prefix) : -1])]
                yield part if isinstance(part, Video) else TextPiece(part, trusted=False)
            elif text:
                yield TextPiece(text, trusted=True)
