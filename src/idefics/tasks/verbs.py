"""`Idefics`: a pipeline with the tasks as methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack, overload

from idefics.calls import checked_text
from idefics.errors import IdeficsError
from idefics.messages import Answer
from idefics.options import OnError, Options, with_options
from idefics.pipeline import Reply, Stream
from idefics.tasks import TASKS
from idefics.tasks.ranking import RankingPipeline
from idefics.tasks.write import STORY

if TYPE_CHECKING:
    from idefics.tasks.pictured import Many, One


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
        image: One,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> Answer: ...
    @overload
    def caption(
        self,
        image: Many,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def caption(self, image: One, *, stream: Literal[True], **o: Unpack[Options]) -> Stream: ...
    @overload
    def caption(  # type: ignore[overload-overlap]  # a str is one picture
        self, image: One, *, stream: Literal[False] = ..., on_error: Literal["return"], **o: Unpack[Options]
    ) -> Answer | IdeficsError: ...
    @overload
    def caption(
        self, image: Many, *, stream: Literal[False] = ..., on_error: Literal["return"], **o: Unpack[Options]
    ) -> list[Answer | IdeficsError]: ...
    @with_options(max_new_tokens=TASKS["caption"].max_new_tokens)
    def caption(
        self, image: One | Many, *, stream: bool = False, on_error: OnError = "raise", **o: Unpack[Options]
    ) -> Reply:
        """Says what a picture shows, with no words from the caller."""
        return self.run(TASKS["caption"], image, stream=stream, on_error=on_error, **o)

    @overload
    def complete(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> Answer: ...
    @overload
    def complete(
        self,
        image: Many,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def complete(self, image: One, text: str, *, stream: Literal[True], **o: Unpack[Options]) -> Stream: ...
    @overload
    def complete(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **o: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def complete(
        self,
        image: Many,
        text: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **o: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @with_options(max_new_tokens=TASKS["complete"].max_new_tokens)
    def complete(
        self,
        image: One | Many,
        text: str,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **o: Unpack[Options],
    ) -> Reply:
        """Continues the caller's words about a picture; the answer's text begins with them."""
        words = checked_text("text", text, "This is an image of").strip()
        return self.run(TASKS["complete"], image, words, stream=stream, on_error=on_error, **o)

    @overload
    def ask(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: Many,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def ask(self, image: One, question: str, *, stream: Literal[True], **o: Unpack[Options]) -> Stream: ...
    @overload
    def ask(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **o: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def ask(
        self,
        image: Many,
        question: str,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **o: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @with_options(max_new_tokens=TASKS["ask"].max_new_tokens)
    def ask(
        self,
        image: One | Many,
        question: str,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **o: Unpack[Options],
    ) -> Reply:
        """Answers a question about a picture."""
        words = checked_text("question", question, "What is on the table?")
        return self.run(TASKS["ask"], image, words, stream=stream, on_error=on_error, **o)

    @overload
    def write(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> Answer: ...
    @overload
    def write(
        self,
        image: Many,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **o: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def write(
        self, image: One, instruction: str = ..., *, stream: Literal[True], **o: Unpack[Options]
    ) -> Stream: ...
    @overload
    def write(  # type: ignore[overload-overlap]  # a str is one picture
        self,
        image: One,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **o: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def write(
        self,
        image: Many,
        instruction: str = ...,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        **o: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @with_options(max_new_tokens=TASKS["write"].max_new_tokens)
    def write(
        self,
        image: One | Many,
        instruction: str = STORY,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **o: Unpack[Options],
    ) -> Reply:
        """Writes a text guided by a picture: a story, unless the instruction asks for something else."""
        words = checked_text("instruction", instruction, STORY, blank=True)
        return self.run(TASKS["write"], image, words, stream=stream, on_error=on_error, **o)


load = Idefics.load
