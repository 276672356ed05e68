"""What a task is: how it is worded for checkpoints that chat and for those that continue documents.

Data only. Knows no model; the wordings' sources stand beside them in each task's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from idefics.messages import Message, Part, Shot, Visual, assistant, user


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do with a picture. `{words}` in a wording stands for what the caller says.

    Attributes:
        name: of the method and of the command.
        help: one line for people.
        words: what the caller's words are called ("question"); "" where there are none.
        chat: what the user says beside the picture, to a checkpoint that chats.
        answer_start: what the answer is made to begin with, to a checkpoint that chats.
        lead: said once before everything, to a checkpoint that continues documents.
        line: said after a picture; the answer follows.
        line_with_shots: the same where examples stand before it, so that answers are told apart.
        max_new_tokens: enough for a usual answer.
    """

    name: str
    help: str
    words: str = ""
    chat: str
    answer_start: str = ""
    lead: str = ""
    line: str = ""
    line_with_shots: str = ""
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Composed:
    """A task worded for one checkpoint: a conversation, or a raw prompt."""

    items: list[Message] | list[Part]
    answer_start: str = ""


def compose(
    task: Task, kind: Literal["base", "chat"], picture: Visual, words: str = "", shots: Sequence[Shot] = ()
) -> Composed:
    """The prompt of a task. Shots are earlier turns of a chat, or earlier passages of a document."""
    return _chat(task, picture, words, shots) if kind == "chat" else _document(task, picture, words, shots)


def _chat(task: Task, picture: Visual, words: str, shots: Sequence[Shot]) -> Composed:
    start = task.answer_start.format(words=words)
    turns: list[Message] = []
    for shot in shots:
        turns.append(user(shot.picture, task.chat.format(words=shot.question or words)))
        turns.append(assistant(f"{start} {shot.answer}" if start else shot.answer))
    turns.append(user(picture, task.chat.format(words=words)))
    return Composed(turns, start)


def _document(task: Task, picture: Visual, words: str, shots: Sequence[Shot]) -> Composed:
    line = task.line_with_shots if shots and task.line_with_shots else task.line
    parts: list[Part] = []
    if task.lead:
        parts.append(task.lead.format(words=words))
    for shot in shots:
        said = line.format(words=shot.question or words)
        parts += [shot.picture, f"{said} {shot.answer}\n"]
    parts.append(picture)
    if line:
        parts.append(line.format(words=words))
    return Composed(parts)
