"""`PromptStyle`: the wording of a suite's prompts: the authors' for a kind of checkpoint, or this package's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from idefics.errors import BadSetting
from idefics.evaluate.suite import Suite
from idefics.tasks import TASKS
from idefics.tasks.classify import task_and_label_text
from idefics.tasks.task import Task

PromptChoice = Literal["auto", "base", "instruct", "chat"]
PROMPTS_FILE = Path(__file__).with_name("prompts.json")
AUTHORS_SOURCE = "the authors' published evaluation code (huggingface/smollm, vision/m4, Apache-2.0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """The wording of a suite's prompts. `{name}` is a field of the row, `{answer}` the answer.

    Attributes:
        is_chat: whether the checkpoint's chat template is filled in; else the prompt is raw text.
        prefix: raw text before the examples.
        example: raw text of one example, with `<image>` where the picture is; in a chat the text of the user's turn.
        begins_with_bos: whether the authors' raw prompt begins with the token that begins a document.
        stop_words: regular expressions; a generated answer ends before the first match.
        banned: texts that are never generated.
        source: where the wording is from, for the report.
    """

    is_chat: bool
    prefix: str = ""
    example: str
    begins_with_bos: bool = True
    stop_words: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    source: str


def choose_style(
    suite: Suite, *, family: str, kind: Literal["base", "chat"], choice: PromptChoice, has_shots: bool
) -> PromptStyle:
    """The wording for a suite and a checkpoint.

    Args:
        suite: the suite; its `prompts` names the authors' prompts.
        family: the checkpoint's family: "idefics1", "idefics2" or "idefics3".
        kind: the checkpoint's kind.
        choice: "base" and "instruct" are the authors' prompts of that kind; "chat" is the plain question in the
            checkpoint's chat template; "auto": the authors' for this kind of checkpoint, else this package's own.
        has_shots: whether there are few-shot examples.

    Raises:
        BadSetting: there are no prompts of that kind.
    """
    name = suite.name if suite.prompts is None else suite.prompts
    known = cast("dict[str, dict[str, Any]]", _read_prompts()["suites"].get(name, {}).get(family, {}))
    if choice == "chat" and kind == "base":
        raise BadSetting("prompts is 'chat', but this checkpoint has no chat template: give base or auto")
    if choice in ("base", "instruct") and choice not in known:
        listed = ", ".join((*known, "chat")) if kind == "chat" else ", ".join(known) or "none but auto"
        raise BadSetting(f"prompts is {choice!r}; for {suite.name} and this checkpoint there are: {listed}")
    if choice == "auto":
        order: tuple[PromptChoice, ...] = ("instruct", "base") if kind == "chat" else ("base",)
        choice = next((one for one in order if one in known), "chat")
    if choice == "chat":
        return own_style(suite, kind, has_shots=has_shots)
    prompt = known[choice]
    return PromptStyle(
        is_chat=False,
        prefix=prompt["prefix"],
        example=prompt["example"],
        begins_with_bos=prompt["bos"],
        stop_words=() if suite.answer == "rank" else tuple(_read_prompts()["stop_words"][suite.answer]),
        banned=() if suite.answer == "rank" else ("\n",),
        source=f"{AUTHORS_SOURCE}: {choice} prompts",
    )


def own_style(suite: Suite, kind: Literal["base", "chat"], *, has_shots: bool) -> PromptStyle:
    """The wording of `idefics ask`, `caption` or `classify`, for data sets that have none of the authors'."""
    task = _task_of(suite, kind)
    words = "{label_list}" if task.words_name == "labels" else "{question}"
    source = f"those of `idefics {task.name}`"
    if kind == "chat":
        return PromptStyle(is_chat=True, example=task.chat_prompt.replace("{words}", words), source=source)
    base_prompt = (
        task.base_prompt_with_shots if has_shots and task.base_prompt_with_shots else task.base_prompt
    )
    text = f"{base_prompt.replace('{words}', words)} " if base_prompt else ""
    return PromptStyle(
        is_chat=False,
        prefix=task.base_instruction.replace("{words}", words),
        example=f"<image>{text}{{answer}}\n",
        stop_words=("\n",),
        source=source,
    )


def _task_of(suite: Suite, kind: Literal["base", "chat"]) -> Task:
    """The task whose wording fits the answers of a suite."""
    if suite.answer == "caption":
        return TASKS["caption"]
    if suite.answer == "rank" and not suite.has_questions:
        return task_and_label_text(suite.labels, kind)[0]
    return TASKS["ask"]


@cache
def _read_prompts() -> dict[str, Any]:
    """The authors' prompts: "suites", by suite, family and kind; and "stop_words", by the kind of answer."""
    return cast("dict[str, Any]", json.loads(PROMPTS_FILE.read_text(encoding="utf-8")))
