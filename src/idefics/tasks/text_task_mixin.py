"""`TextTaskMixin`: the methods of `Idefics` that generate the answer of a task."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Unpack, overload

from idefics.catalog import DOCTAGS_MODELS
from idefics.errors import BadRequest, IdeficsError
from idefics.generation.generation_call import GenerationCall
from idefics.generation.loading import LoadedModel
from idefics.generation.prompts import make_prompt
from idefics.generation.streaming import GenerationResult, Stream
from idefics.messages import Answer, ImageDetail, PictureOrVideo, Shot
from idefics.options import (
    AnswerKeywords,
    OnError,
    OnErrorReturnKeywords,
    Options,
    StreamKeywords,
    document_and_check_options,
    pop_image_detail,
)
from idefics.prompt import Prompt
from idefics.tasks import TASKS
from idefics.tasks.picture_arguments import parse_image_argument
from idefics.tasks.task import Task, compose_task_prompt
from idefics.tasks.write import STORY
from idefics.validation import validate_text

if TYPE_CHECKING:
    from idefics.tasks.picture_arguments import PictureInput, PictureInputs


class TextTaskMixin:
    """The tasks that generate text about a picture, or about each of a list: `caption`, `complete`, `ask`, `write`."""

    loaded_model: LoadedModel
    shots: tuple[Shot, ...]

    def run(
        self,
        task: Task,
        image: PictureInput | PictureInputs,
        words: str = "",
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Runs a task of `TASKS` other than `classify`; the methods of the tasks call it.

        Args:
            task: the task.
            image: one picture or a list of pictures.
            words: the caller's text, such as the question.
            stream: return a `Stream`; one picture only.
            on_error: see `ask`.
            **options: see `Options`.

        Raises:
            BadRequest: see `check_task`; a picture, the text or an option is wrong.
        """
        self.check_task(task)
        options.setdefault("max_new_tokens", task.max_new_tokens)
        image_detail = pop_image_detail(options)
        call = GenerationCall(self.loaded_model, options, text_prefix=task.answer_start.format(words=words))
        pictures, error_policy = parse_image_argument(image, on_error, stream)
        encode = partial(self.task_prompt, task, words=words, image_detail=image_detail)
        return call.answer(encode, pictures, error_policy)

    def check_task(self, task: Task) -> None:
        """Raises BadRequest if the task needs a checkpoint that writes DocTags, and this one does not."""
        if (
            task.needs_doctags
            and not self.loaded_model.processor.tokenizer.special_ids_by_kind.writes_doctags
        ):
            raise BadRequest(
                f"{task.name} needs a checkpoint that writes DocTags, and this one does not: "
                f"load {' or '.join(DOCTAGS_MODELS)} (--model)"
            )

    def task_prompt(
        self, task: Task, picture: PictureOrVideo, words: str, image_detail: ImageDetail
    ) -> Prompt:
        """Makes the prompt of a task other than `classify` about one picture, with the few-shot examples.

        Args:
            task: the task.
            picture: the picture.
            words: the caller's text; special tokens in it are plain characters.
            image_detail: how pictures that do not set their own detail are split into tiles.

        Raises:
            BadRequest: see `check_task`; the picture or the text is wrong.
        """
        self.check_task(task)
        task_prompt = compose_task_prompt(
            task, self.loaded_model.processor.prompt_format.kind, picture, words, self.shots
        )
        processor = self.loaded_model.processor_for_untrusted_text(image_detail)
        return make_prompt(processor, task_prompt.items, answer_start=task_prompt.answer_start)

    @overload
    def caption(self, image: PictureInput, **options: Unpack[AnswerKeywords]) -> Answer: ...  # type: ignore[overload-overlap]  # a str is one picture
    @overload
    def caption(self, image: PictureInputs, **options: Unpack[AnswerKeywords]) -> list[Answer]: ...
    @overload
    def caption(self, image: PictureInput, **options: Unpack[StreamKeywords]) -> Stream: ...
    @overload
    def caption(  # type: ignore[overload-overlap]
        self, image: PictureInput, **options: Unpack[OnErrorReturnKeywords]
    ) -> Answer | IdeficsError: ...
    @overload
    def caption(
        self, image: PictureInputs, **options: Unpack[OnErrorReturnKeywords]
    ) -> list[Answer | IdeficsError]: ...
    @document_and_check_options(max_new_tokens=TASKS["caption"].max_new_tokens)
    def caption(
        self,
        image: PictureInput | PictureInputs,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Describes a picture.

        Args:
            image: one picture or video in any form that `Picture` takes, or a list of them.
            stream: return a `Stream`; one picture only.
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its answer, and answer for the other pictures.
            **options: see `Options`.

        Returns:
            The answer; a list of answers for a list of pictures.

        Raises:
            BadRequest: a picture or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.caption("photo.jpg").text
        """
        return self.run(TASKS["caption"], image, stream=stream, on_error=on_error, **options)

    @overload
    def complete(self, image: PictureInput, text: str, **options: Unpack[AnswerKeywords]) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def complete(
        self, image: PictureInputs, text: str, **options: Unpack[AnswerKeywords]
    ) -> list[Answer]: ...
    @overload
    def complete(self, image: PictureInput, text: str, **options: Unpack[StreamKeywords]) -> Stream: ...
    @overload
    def complete(  # type: ignore[overload-overlap]
        self, image: PictureInput, text: str, **options: Unpack[OnErrorReturnKeywords]
    ) -> Answer | IdeficsError: ...
    @overload
    def complete(
        self, image: PictureInputs, text: str, **options: Unpack[OnErrorReturnKeywords]
    ) -> list[Answer | IdeficsError]: ...
    @document_and_check_options(max_new_tokens=TASKS["complete"].max_new_tokens)
    def complete(
        self,
        image: PictureInput | PictureInputs,
        text: str,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Continues a text about a picture, such as "This is an image of".

        Args:
            image: one picture or video in any form that `Picture` takes, or a list of them.
            text: the text to continue.
            stream: return a `Stream`; one picture only.
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its answer, and answer for the other pictures.
            **options: see `Options`.

        Returns:
            The answer, whose text begins with `text`; a list of answers for a list of pictures.

        Raises:
            BadRequest: a picture, the text or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.complete("photo.jpg", "This is an image of").text
        """
        words = validate_text("text", text, "This is an image of").strip()
        return self.run(TASKS["complete"], image, words, stream=stream, on_error=on_error, **options)

    @overload
    def ask(self, image: PictureInput, question: str, **options: Unpack[AnswerKeywords]) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def ask(self, image: PictureInputs, question: str, **options: Unpack[AnswerKeywords]) -> list[Answer]: ...
    @overload
    def ask(self, image: PictureInput, question: str, **options: Unpack[StreamKeywords]) -> Stream: ...
    @overload
    def ask(  # type: ignore[overload-overlap]
        self, image: PictureInput, question: str, **options: Unpack[OnErrorReturnKeywords]
    ) -> Answer | IdeficsError: ...
    @overload
    def ask(
        self, image: PictureInputs, question: str, **options: Unpack[OnErrorReturnKeywords]
    ) -> list[Answer | IdeficsError]: ...
    @document_and_check_options(max_new_tokens=TASKS["ask"].max_new_tokens)
    def ask(
        self,
        image: PictureInput | PictureInputs,
        question: str,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Answers a question about a picture, or about each of several.

        Args:
            image: one picture or video in any form that `Picture` takes, or a list of them.
            question: the question.
            stream: return a `Stream`; one picture only.
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its answer, and answer for the other pictures.
            **options: see `Options`.

        Returns:
            The answer; a list of answers for a list of pictures.

        Raises:
            BadRequest: a picture, the question or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.ask("photo.jpg", "What is on the table?", max_new_tokens=20).text
        """
        words = validate_text("question", question, "What is on the table?")
        return self.run(TASKS["ask"], image, words, stream=stream, on_error=on_error, **options)

    @overload
    def write(  # type: ignore[overload-overlap]
        self, image: PictureInput, instruction: str = ..., **options: Unpack[AnswerKeywords]
    ) -> Answer: ...
    @overload
    def write(
        self, image: PictureInputs, instruction: str = ..., **options: Unpack[AnswerKeywords]
    ) -> list[Answer]: ...
    @overload
    def write(
        self, image: PictureInput, instruction: str = ..., **options: Unpack[StreamKeywords]
    ) -> Stream: ...
    @overload
    def write(  # type: ignore[overload-overlap]
        self, image: PictureInput, instruction: str = ..., **options: Unpack[OnErrorReturnKeywords]
    ) -> Answer | IdeficsError: ...
    @overload
    def write(
        self, image: PictureInputs, instruction: str = ..., **options: Unpack[OnErrorReturnKeywords]
    ) -> list[Answer | IdeficsError]: ...
    @document_and_check_options(max_new_tokens=TASKS["write"].max_new_tokens)
    def write(
        self,
        image: PictureInput | PictureInputs,
        instruction: str = STORY,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Writes a text guided by a picture: a story, unless the instruction asks for something else.

        Args:
            image: one picture or video in any form that `Picture` takes, or a list of them.
            instruction: what to write.
            stream: return a `Stream`; one picture only.
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its answer, and answer for the other pictures.
            **options: see `Options`.

        Returns:
            The answer; a list of answers for a list of pictures.

        Raises:
            BadRequest: a picture, the instruction or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.write("photo.jpg", "Write a product description.", temperature=0.7).text
        """
        words = validate_text("instruction", instruction, STORY, allow_blank=True)
        return self.run(TASKS["write"], image, words, stream=stream, on_error=on_error, **options)
