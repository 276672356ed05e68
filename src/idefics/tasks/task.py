"""The `Task` record: the prompts of a task, for chat checkpoints and for base checkpoints. Plain data.

The source of each prompt's wording is cited in the task's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from idefics.messages import ContentPart, Message, PictureOrVideo, Shot, assistant, user


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task: something to do with one picture. `{words}` in a prompt is replaced by the caller's text.

    Attributes:
        name: the name of its method and command.
        help: one line for users.
        examples: command lines for the help of its command.
        words_name: the argument name of the caller's text ("question"); "" if the task takes none.
        default_words: the text if the caller gives none; None if the caller must give one.
        chat_prompt: for chat checkpoints: the text of the user's message, after the picture.
        answer_start: for chat checkpoints: the beginning of the answer, given to the model (prefill).
        base_instruction: for base checkpoints: the text before the first picture.
        base_prompt: for base checkpoints: the text after the picture; the answer follows it.
        base_prompt_with_shots: replaces `base_prompt` if few-shot examples precede it; "" if it is the same.
        max_new_tokens: the task's default of this option.
        needs_doctags: whether only checkpoints that write DocTags can do it.
    """

    name: str
    help: str
    examples: tuple[str, ...]
    words_name: str = ""
    default_words: str | None = None
    chat_prompt: str
    answer_start: str = ""
    base_instruction: str = ""
    base_prompt: str = ""
    base_prompt_with_shots: str = ""
    max_new_tokens: int = 64
    needs_doctags: bool = False


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """The prompt of a task about one picture.

    Attributes:
        items: messages for a chat checkpoint; text and pictures for a base checkpoint.
        answer_start: for messages: the beginning of the answer.
    """

    items: list[Message] | list[ContentPart]
    answer_start: str = ""


def compose_task_prompt(
    task: Task,
    kind: Literal["base", "chat"],
    picture: PictureOrVideo,
    words: str = "",
    shots: Sequence[Shot] = (),
) -> TaskPrompt:
    """Builds the prompt of a task: few-shot examples become earlier turns of a chat or earlier passages of a document.

    Args:
        task: the task.
        kind: the checkpoint's kind: "chat", or "base" for one that continues documents.
        picture: the picture that the task is about.
        words: the caller's text, such as the question.
        shots: few-shot examples, in their order; one without a question of its own has `words`.
    """
    if kind == "chat":  # each shot is a turn of the user and one of the assistant
        start = task.answer_start.format(words=words)
        turns: list[Message] = []
        for shot in shots:
            turns.append(user(shot.picture, task.chat_prompt.format(words=shot.question or words)))
            turns.append(assistant(f"{start} {shot.answer}" if start else shot.answer))
        turns.append(user(picture, task.chat_prompt.format(words=words)))
        return TaskPrompt(turns, start)
    # Each shot is a passage of the document before the picture.
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
