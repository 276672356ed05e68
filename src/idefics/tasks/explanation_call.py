"""`ExplanationCall`: the arguments of one `explain` call; makes its prompt and then its explanation, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import PIL.Image

from idefics.engine.request import Deadline
from idefics.errors import BadPrompt, BadRequest, BadSetting
from idefics.explain.explanation import Explanation, Method, build_explanation
from idefics.explain.occlusion import Occlusion, TokenEvidence, run_steps
from idefics.explain.parts import CellGrid
from idefics.explain.relative_attention import RelativeAttention
from idefics.explain.words import TokenGroup, group_labels, group_words
from idefics.generation.generation_call import GenerationCall
from idefics.generation.loading import LoadedModel
from idefics.generation.prompts import make_prompt, make_scoring_prompt
from idefics.messages import (
    ContentPart,
    ImageDetail,
    Message,
    PictureOrVideo,
    Shot,
    Video,
    assistant,
    user,
)
from idefics.processing.image_processor import open_picture_with_note
from idefics.prompt import PreprocessedImage, ScoringPrompt
from idefics.tasks import TASKS, classify
from idefics.tasks.classify import check_and_strip_labels, task_and_label_text
from idefics.tasks.task import Task, TaskPrompt, compose_task_prompt
from idefics.validation import validate_choice, validate_range, validate_text

if TYPE_CHECKING:
    from idefics.processing.processor import Processor

MIN_GRID, MAX_GRID = 4, 64


@dataclass(frozen=True)
class PreparedExplanation:
    """An explanation whose pictures are opened and whose prompt is made.

    Attributes:
        call: the arguments.
        method: computes the evidence.
        groups: the tokens of each word or label.
        answer: the answer; "" for labels.
        pictures: what the maps are laid over.
        notes: what was not read of the pictures' files.
    """

    call: ExplanationCall
    method: Occlusion | RelativeAttention
    groups: Sequence[TokenGroup]
    answer: str
    pictures: Sequence[PIL.Image.Image]
    notes: tuple[str, ...]

    @property
    def num_passes(self) -> int:
        """How many passes of the model the explanation takes."""
        return self.method.num_passes

    @property
    def num_tokens(self) -> int:
        """How many tokens of prompts and continuations all passes have together."""
        prompt, continuations = self.method.prompt
        return self.num_passes * (len(prompt) + sum(map(len, continuations)))

    def run(self) -> Iterator[Explanation]:
        """Yields explanations that get finer; the last is the result."""
        yield from map(self.explanation_of, run_steps(self.call.model.engine, self.method.steps()))

    def explanation_of(self, evidence: TokenEvidence) -> Explanation:
        """The explanation by what is known so far."""
        return build_explanation(
            evidence,
            self.groups,
            self.answer,
            self.pictures,
            is_ranking=self.call.labels is not None,
            method=self.call.method,
        )


@dataclass(kw_only=True)
class ExplanationCall:
    """The arguments of one `explain` call; see `ExplanationMixin.explain`.

    Attributes:
        model: answers and scores.
        shots: few-shot examples.
        task_name: a key of `TASKS`; `task` is that of the prompt.
        earlier: turns of the chat before the question: questions and answers.
        words: the text that the task takes.

    Raises:
        BadSetting: an argument is not one of its values.
    """

    model: LoadedModel
    shots: Sequence[Shot]
    question: str | None
    answer: str | None
    labels: Sequence[str] | None
    method: Method
    grid: int
    task_name: str
    image_detail: ImageDetail
    max_new_tokens: int | None
    timeout: float | None = None
    earlier: Sequence[tuple[str, str]]

    task: Task = field(init=False)
    words: str = field(init=False, default="")
    deadline: Deadline | None = field(init=False)

    def __post_init__(self) -> None:
        validate_choice("method", self.method, get_args(Method))
        validate_range("grid", self.grid, MIN_GRID, MAX_GRID)
        validate_choice("task", self.task_name, tuple(TASKS))
        task = self.task = classify.TASK if self.labels is not None else TASKS[self.task_name]
        if self.answer is not None:
            validate_text("answer", self.answer, "A puppy.")
            if self.labels is not None:
                raise BadSetting("answer and labels are both given: leave one of the two out")
        if task is classify.TASK:
            if self.labels is None:
                raise BadSetting("no labels given: task 'classify' needs labels, such as ['cat', 'dog']")
            if self.question is not None:
                raise BadSetting(
                    "question and labels are both given: labels are explained without a question"
                )
            self.labels = check_and_strip_labels(self.labels)
        elif self.question is not None:
            words = validate_text(task.words_name or "question", self.question, "What is on the table?")
            if not task.words_name:
                raise BadSetting(f"{task.name} takes no question: leave it out, or use task='ask'")
            self.words = words.strip()
        elif task.words_name and task.default_words is None:
            raise BadPrompt(f"no {task.words_name} given: explain(picture, 'What is on the table?')")
        else:
            self.words = task.default_words or ""
        is_chat = self.model.processor.prompt_format.kind == "chat"
        if self.earlier and (task.name != "ask" or self.shots or not is_chat):
            raise BadSetting(
                "earlier turns are those of a chat: they need a chat model and task='ask', without examples"
            )
        self.deadline = Deadline.from_timeout(self.timeout)

    def prepare(self, pictures: Sequence[PictureOrVideo]) -> PreparedExplanation:
        """Opens the pictures, answers if there is no answer yet, and makes the prompt.

        Raises:
            BadRequest: a picture or the text is wrong, or the model's own answer is empty.
            BadSetting: the model cannot be explained by the method.
        """
        opened, notes = self._open(pictures)
        processor = self.model.processor_for_untrusted_text(self.image_detail)
        task, words = self.task, self.words
        if self.labels is not None:
            task, words = task_and_label_text(self.labels, processor.prompt_format.kind)
        task_prompt = self._compose(task, words, opened)
        texts, answer = self.labels, ""
        if texts is None:
            answer = self.answer or self._generate(processor, task_prompt)
            texts = [answer]
        is_chat = processor.prompt_format.kind == "chat"
        prompt = make_scoring_prompt(
            processor,
            task_prompt.items,
            [text if is_chat else f" {text.lstrip()}" for text in texts],
            answer_start=task_prompt.answer_start,
        )
        if self.labels is not None:
            groups = group_labels(self.labels, prompt.continuations)
        else:
            groups = group_words(processor.tokenizer, prompt.continuations[0], answer)
        images = self._explained_images(prompt, opened)
        sources = [one.source for one in opened]
        shown = [source for source in sources if isinstance(source, PIL.Image.Image)]
        if len(shown) != len(images):  # the frames of a video as the model sees them
            shown = [self._frame_to_picture(image) for image in images]
        method: Occlusion | RelativeAttention
        if self.method == "fast":
            method = RelativeAttention(self.model, prompt, len(shown), self.deadline)
        else:
            grids = [CellGrid.for_size(*picture.size, self.grid) for picture in shown]
            method = Occlusion(self.model, prompt, len(shown), self.deadline, groups, grids, self.grid)
        return PreparedExplanation(self, method, groups, answer, shown, notes)

    def _open(self, pictures: Sequence[PictureOrVideo]) -> tuple[list[PictureOrVideo], tuple[str, ...]]:
        """The pictures with their pixels, so that each is decoded once, and their notes; videos as they are."""
        opened: list[PictureOrVideo] = []
        notes: dict[str, None] = {}
        for picture in pictures:
            if isinstance(picture, Video):
                opened.append(picture)
                continue
            decoded = open_picture_with_note(picture, self.model.processor.fetcher)
            # A new picture: the decoded one still has the file's orientation, by which it is turned already.
            pixels = PIL.Image.fromarray(np.asarray(decoded.image))
            opened.append(replace(picture, source=pixels))
            if decoded.note:
                notes[decoded.note] = None
        return opened, tuple(notes)

    def _compose(self, task: Task, words: str, pictures: Sequence[PictureOrVideo]) -> TaskPrompt:
        """The prompt of the task about all pictures: the others stand before the last; of a chat in its first turn."""
        if self.earlier:
            texts = [*(text for turn in self.earlier for text in turn), words]
            turns = [(assistant if index % 2 else user)(text) for index, text in enumerate(texts)]
            return TaskPrompt([user(*pictures, texts[0]), *turns[1:]])
        *others, last = pictures
        kind = self.model.processor.prompt_format.kind
        task_prompt = compose_task_prompt(task, kind, last, words, self.shots)
        messages: list[Message] = []
        parts: list[ContentPart] = []
        for item in task_prompt.items:
            if isinstance(item, Message):
                has_last = any(part is last for part in item.parts)
                messages.append(Message(item.role, (*others, *item.parts)) if has_last else item)
            else:
                parts += [*others, item] if item is last else [item]
        return replace(task_prompt, items=messages or parts)

    def _generate(self, processor: Processor, task_prompt: TaskPrompt) -> str:
        """The model's own answer, greedy."""
        max_new_tokens = self.max_new_tokens or self.task.max_new_tokens
        call = GenerationCall(self.model, {"max_new_tokens": max_new_tokens})
        prompt = make_prompt(processor, task_prompt.items, answer_start=task_prompt.answer_start)
        call.deadline = self.deadline
        text = call.submit(prompt).result().text.strip()
        if not text:
            raise BadRequest("the model's answer is empty, so there is nothing to explain: give answer=")
        return text

    def _explained_images(
        self, prompt: ScoringPrompt, opened: Sequence[PictureOrVideo]
    ) -> Sequence[PreprocessedImage]:
        """The pictures of the prompt that the call gave, frames of videos among them: the last ones."""
        images = prompt.prompt.pictures
        if not any(isinstance(picture, Video) for picture in opened):
            return images[len(images) - len(opened) :]
        if len(opened) > 1 or any(isinstance(shot.picture, Video) for shot in self.shots):
            raise BadRequest("a video is explained alone: give one video, and no other video as an example")
        return images[len(self.shots) :]

    def _frame_to_picture(self, image: PreprocessedImage) -> PIL.Image.Image:
        """A frame without its normalisation."""
        config = self.model.processor.image_config
        mean, std = (np.array(values)[:, None, None] for values in (config.mean, config.std))
        pixels = (image.frames[-1] * std + mean) / config.rescale_factor
        return PIL.Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0))
