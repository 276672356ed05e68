"""`PageReadingMixin`: the method `read` of `Idefics`, which writes a page down as DocTags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack, overload

from idefics.errors import IdeficsError
from idefics.generation.streaming import GenerationResult, Stream
from idefics.messages import Answer
from idefics.options import (
    AnswerKeywords,
    OnError,
    OnErrorReturnKeywords,
    Options,
    StreamKeywords,
    document_and_check_options,
)
from idefics.tasks import TASKS
from idefics.tasks.read import CONVERT_PAGE
from idefics.tasks.text_task_mixin import TextTaskMixin
from idefics.validation import validate_text

if TYPE_CHECKING:
    from idefics.tasks.picture_arguments import PictureInput, PictureInputs


class PageReadingMixin(TextTaskMixin):
    """The task of checkpoints that write pages down as DocTags: `read`."""

    @overload
    def read(  # type: ignore[overload-overlap]  # a str is one picture
        self, image: PictureInput, instruction: str = ..., **options: Unpack[AnswerKeywords]
    ) -> Answer: ...
    @overload
    def read(
        self, image: PictureInputs, instruction: str = ..., **options: Unpack[AnswerKeywords]
    ) -> list[Answer]: ...
    @overload
    def read(
        self, image: PictureInput, instruction: str = ..., **options: Unpack[StreamKeywords]
    ) -> Stream: ...
    @overload
    def read(  # type: ignore[overload-overlap]
        self, image: PictureInput, instruction: str = ..., **options: Unpack[OnErrorReturnKeywords]
    ) -> Answer | IdeficsError: ...
    @overload
    def read(
        self, image: PictureInputs, instruction: str = ..., **options: Unpack[OnErrorReturnKeywords]
    ) -> list[Answer | IdeficsError]: ...
    @document_and_check_options(max_new_tokens=TASKS["read"].max_new_tokens)
    def read(
        self,
        image: PictureInput | PictureInputs,
        instruction: str = CONVERT_PAGE,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Converts the picture of a page to DocTags, with SmolDocling or Granite Docling.

        `idefics read` makes Markdown, HTML or JSON of the answers.

        Args:
            image: one picture in any form that `Picture` takes, or a list of them.
            instruction: what to convert; the cards of the checkpoints list the instructions that they know.
            stream: return a `Stream`; one picture only.
            on_error: "raise" the first error, with the number of its picture; or "return" each error in the place of
                its answer, and answer for the other pictures.
            **options: see `Options`.

        Returns:
            The answer, whose text is DocTags; a list of answers for a list of pictures. An answer with the finish
            reason "length" is cut off.

        Raises:
            BadRequest: the checkpoint does not write DocTags; a picture, the instruction or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.read("page.png").text
        """
        words = validate_text("instruction", instruction, CONVERT_PAGE)
        return self.run(TASKS["read"], image, words, stream=stream, on_error=on_error, **options)
