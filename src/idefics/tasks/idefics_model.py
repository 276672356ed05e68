"""`Idefics`: a pipeline with the tasks as methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack, overload

from idefics.errors import IdeficsError
from idefics.generation import GenerationResult, Stream
from idefics.messages import Answer
from idefics.options import OnError, Options, document_options
from idefics.tasks import TASKS
from idefics.tasks.ranking import RankingPipeline
from idefics.tasks.write import STORY
from idefics.validation import validate_text

if TYPE_CHECKING:
    from idefics.tasks.task_pipeline import PictureInput, PictureInputs


class Idefics(RankingPipeline):
    """A loaded model. Every method takes one picture and gives one result, or a list and gives a list.

    A picture is a path, bytes, an open file, a `PIL.Image`, a NumPy array, a torch tensor, an http(s) URL, a data URI,
    or a `Picture` of these.
    A checkpoint that was trained with video takes one wherever a picture goes: a video file or its bytes, an address
    that ends like a video's, or a `Video`.
    All but `classify` take the `Options` of `generate`, and `stream=True` for one picture.
    """

    @overload
    def caption(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def caption(
        self,
        image: PictureInputs,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def caption(
        self, image: PictureInput, *, stream: Literal[True], **options: Unpack[Options]
    ) -> Stream: ...
    @overload
    def caption(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def caption(
        self,
        image: PictureInputs,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @document_options(max_new_tokens=TASKS["caption"].max_new_tokens)
    def caption(
        self,
        image: PictureInput | PictureInputs,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Says what a picture shows, with no words from the caller."""
        return self.run(TASKS["caption"], image, stream=stream, on_error=on_error, **options)

    @overload
    def complete(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def complete(
        self,
        image: PictureInputs,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def complete(
        self, image: PictureInput, text: str, *, stream: Literal[True], **options: Unpack[Options]
    ) -> Stream: ...
    @overload
    def complete(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def complete(
        self,
        image: PictureInputs,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @document_options(max_new_tokens=TASKS["complete"].max_new_tokens)
    def complete(
        self,
        image: PictureInput | PictureInputs,
        text: str,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Continues the caller's words about a picture; the answer's text begins with them."""
        words = validate_text("text", text, "This is an image of").strip()
        return self.run(TASKS["complete"], image, words, stream=stream, on_error=on_error, **options)

    @overload
    def ask(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: PictureInputs,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def ask(
        self, image: PictureInput, question: str, *, stream: Literal[True], **options: Unpack[Options]
    ) -> Stream: ...
    @overload
    def ask(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def ask(
        self,
        image: PictureInputs,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @document_options(max_new_tokens=TASKS["ask"].max_new_tokens)
    def ask(
        self,
        image: PictureInput | PictureInputs,
        question: str,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Answers a question about a picture."""
        words = validate_text("question", question, "What is on the table?")
        return self.run(TASKS["ask"], image, words, stream=stream, on_error=on_error, **options)

    @overload
    def write(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def write(
        self,
        image: PictureInputs,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def write(
        self,
        image: PictureInput,
        instruction: str = ...,
        *,
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> Stream: ...
    @overload
    def write(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: PictureInput,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def write(
        self,
        image: PictureInputs,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @document_options(max_new_tokens=TASKS["write"].max_new_tokens)
    def write(
        self,
        image: PictureInput | PictureInputs,
        instruction: str = STORY,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Writes a text guided by a picture: a story, unless the instruction asks for something else."""
        words = validate_text("instruction", instruction, STORY, allow_blank=True)
        return self.run(TASKS["write"], image, words, stream=stream, on_error=on_error, **options)


load = Idefics.load
