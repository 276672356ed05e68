"""What a task is: how it is worded for checkpoints that chat and for those that continue documents.

Data only. Knows no model; the wordings' sources stand beside them in each task's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from idefics.messages import ContentPart, Message, PictureOrVideo, Shot, assistant, user


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to do with a picture. `{words}` in a wording stands for what the caller says.

    Attributes:
        name: of the method and of the command.
        help: one line for people.
        words_name: what the caller's words are called ("question"); "" where there are none.
        chat_prompt: what the user says beside the picture, to a checkpoint that chats.
        answer_start: what the answer is made to begin with, to a checkpoint that chats.
        base_instruction: said once before everything, to a checkpoint that continues documents.
        base_prompt: said after a picture; the answer follows.
        base_prompt_with_shots: the same where examples stand before it, so that answers are told apart.
        max_new_tokens: enough for a usual answer.
    """

    name: str
    help: str
    words_name: str = ""
    chat_prompt: str
    answer_start: str = ""
    base_instruction: str = ""
    base_prompt: str = ""
    base_prompt_with_shots: str = ""
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A task worded for one checkpoint: a conversation, or a raw prompt."""

    items: list[Message] | list[ContentPart]
    answer_start: str = ""


def compose_task_prompt(
    task: Task,
    kind: Literal["base", "chat"],
    picture: PictureOrVideo,
    words: str = "",
    shots: Sequence[Shot] = (),
) -> TaskPrompt:
    """The prompt of a task. Shots are earlier turns of a chat, or earlier passages of a document."""
    return (
        _compose_chat(task, picture, words, shots)
        if kind == "chat"
        else _compose_document(task, picture, words, shots)
    )


def _compose_chat(task: Task, picture: PictureOrVideo, words: str, shots: Sequence[Shot]) -> TaskPrompt:
    start = task.answer_start.format(words=words)
    turns: list[Message] = []
    for shot in shots:
        turns.append(user(shot.picture, task.chat_prompt.format(words=shot.question or words)))
        turns.append(assistant(f"{start} {shot.answer}" if start else shot.answer))
    turns.append(user(picture, task.chat_prompt.format(words=words)))
    return TaskPrompt(turns, start)


def _compose_document(task: Task, picture: PictureOrVideo, words: str, shots: Sequence[Shot]) -> TaskPrompt:
    prompt_template = (
        task.base_prompt_with_shots if shots and task.base_prompt_with_shots else task.base_prompt
    )
    parts: list[ContentPart] = []
    if task.base_instruction:
        parts.append(task.base_instruction.format(words=words))
    for shot in shots:
        prompt_text = prompt_template.format(words=shot.question or words)
        parts += [shot.picture, f"{prompt_text} {shot.answer}\n"]
    parts.append(picture)
    if prompt_template:
        parts.append(prompt_template.format(words=words))
    return TaskPrompt(parts)
