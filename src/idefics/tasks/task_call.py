"""`TaskCall`: a task with its options, checked once, which submits any number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from idefics.engine.request import Deadline
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.generation.generation_call import GenerationCall
from idefics.generation.streaming import Generation
from idefics.options import MapOptions, Options, pop_image_detail
from idefics.processing.video import to_picture_or_video
from idefics.tasks import TASKS, classify
from idefics.tasks.ranking import LabelRanker, PendingRanking
from idefics.validation import describe_type, validate_choice, validate_text

if TYPE_CHECKING:
    from idefics.tasks.text_task_mixin import TextTaskMixin

LABEL_OPTIONS = ("labels", "length_normalized", "calibrated")


class TaskCall:
    """A task with its options, for rows that are pictures or dicts with the keys "image" and "prompt".

    Args:
        vlm: the model, with the few-shot examples.
        task: a key of `TASKS`.
        prompt: the question or text of rows that have none of their own; None: the task's default.
        options: the options of the task.

    Raises:
        BadSetting: no such task, an option is wrong, or the task does not take it.
        BadRequest: the checkpoint cannot do the task.
    """

    def __init__(self, vlm: TextTaskMixin, task: str, prompt: str | None, options: MapOptions) -> None:
        validate_choice("task", task, tuple(TASKS))
        self.vlm, self.task, self.prompt = vlm, TASKS[task], prompt
        vlm.check_task(self.task)
        self._ranker: LabelRanker | None = None
        given = cast("dict[str, Any]", {**options})
        label_options = {name: given.pop(name) for name in LABEL_OPTIONS if name in given}
        if prompt is not None:
            self._check_prompt(prompt)
        if self.task is not classify.TASK:
            if label_options:
                raise BadSetting(f"{next(iter(label_options))} is an option of 'classify', not of {task!r}")
            given.setdefault("max_new_tokens", self.task.max_new_tokens)
            text_options = cast("Options", given)
            self.image_detail = pop_image_detail(text_options)
            self._call = GenerationCall(vlm.loaded_model, text_options)
            return
        self._timeout, image_detail = given.pop("timeout", None), pop_image_detail(cast("Options", given))
        Deadline.from_timeout(self._timeout)  # checks it
        if given:
            raise BadSetting(f"{next(iter(given))} is an option of tasks that write, not of 'classify'")
        if "labels" not in label_options:
            raise BadSetting("no labels given: 'classify' needs labels, such as ['cat', 'dog']")
        self._ranker = LabelRanker.from_options(
            vlm.loaded_model, shots=vlm.shots, image_detail=image_detail, **label_options
        )

    def submit(self, row: Any) -> Generation | PendingRanking:
        """Makes the prompt of a row and submits it; waits while the engine's queue is full.

        Raises:
            BadRequest: the row, its picture or its prompt is wrong.
        """
        if isinstance(row, IdeficsError):
            raise row
        image, prompt = row, None
        if isinstance(row, Mapping):
            if "image" not in row:
                raise BadPrompt(f'the row has no "image": its keys are {", ".join(map(str, row)) or "none"}')
            image, prompt = row["image"], row.get("prompt")
        picture = to_picture_or_video(image)
        if self._ranker is not None:
            if prompt is not None:
                self._check_prompt(prompt)
            return replace(self._ranker, deadline=Deadline.from_timeout(self._timeout)).submit(picture)
        words = self._words(prompt)
        call = self._call.restart(text_prefix=self.task.answer_start.format(words=words))
        return call.submit(self.vlm.task_prompt(self.task, picture, words, self.image_detail))

    def _words(self, prompt: object) -> str:
        """The text that the task takes for a row whose own text is `prompt`; "" if the task takes none."""
        if prompt is None:
            prompt = self.prompt
        if prompt is not None:
            return self._check_prompt(prompt)
        if self.task.words_name and self.task.default_words is None:
            raise BadPrompt(f'no {self.task.words_name} given: pass prompt=, or rows with a "prompt"')
        return self.task.default_words or ""

    def _check_prompt(self, prompt: object) -> str:
        """The text without blanks at its ends. Raises BadPrompt if it is none, or the task takes none."""
        if not self.task.words_name or self.task is classify.TASK:
            raise BadPrompt(f"{self.task.name} takes no prompt: 'ask' and 'complete' do")
        if not isinstance(prompt, str):
            raise BadPrompt(f"the {self.task.words_name} is {describe_type(prompt)}: give a text")
        return validate_text(self.task.words_name, prompt, "What is this?").strip()
