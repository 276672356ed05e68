"""Pictures and words in, answers out: joins a checkpoint's processor and the engine.

Knows prompts, sampling and streams. Does not know tasks (they word prompts) nor doors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from idefics.calls import checked_flag, checked_text
from idefics.errors import BadSetting, IdeficsError
from idefics.messages import ImageDetail
from idefics.options import OnError, Options, Wishes, with_options
from idefics.pipeline.ahead import ahead, made
from idefics.pipeline.answering import Reply, Stream
from idefics.pipeline.arguments import checked_prompt, several
from idefics.pipeline.asking import asking_for
from idefics.pipeline.failures import Failures
from idefics.pipeline.prompting import Prompting
from idefics.prompt import Prompt

if TYPE_CHECKING:
    from idefics.messages import Answer
    from idefics.pipeline.prompting import Conversation, Items
    from idefics.processing.processor import Processor


class Pipeline(Prompting):
    """A loaded model that continues prompts and holds conversations. `Idefics` adds the tasks."""

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, but never a prompt
        self,
        items: Items,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def generate(
        self,
        items: Sequence[Items],
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def generate(
        self,
        items: Items,
        *,
        stream: Literal[True],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Stream: ...
    @overload
    def generate(  # type: ignore[overload-overlap]  # as above
        self,
        items: Items,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def generate(
        self,
        items: Sequence[Items],
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @with_options()
    def generate(
        self,
        items: Items | Sequence[Items],
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        add_end_of_utterance_token: bool | None = None,
        **options: Unpack[Options],
    ) -> Reply:
        """Continues a raw prompt, exactly as given; or several, and then a list of answers comes back.

        Args:
            items: text and pictures in any order, or a list of such lists. Special tokens in the text are honoured.
            stream: return a `Stream` of text instead; one prompt only.
            on_error: "raise" the first error, with the number of its prompt; or "return" each error in the place of its
                answer, and answer the rest.
            add_end_of_utterance_token: whether Idefics 1 puts its `<end_of_utterance>` between neighbouring texts;
                None: where the checkpoint has it.
            **options: see `Options`; greedy and at most 256 new tokens unless told.

        Raises:
            BadRequest: a picture, a prompt or a setting is wrong; the message says which.
        """
        began = time.perf_counter()
        prompts, many = several("items", items, "a list of text and pictures")
        if add_end_of_utterance_token is not None:
            checked_flag("add_end_of_utterance_token", add_end_of_utterance_token)
        make = partial(self._seeing(options).raw, add_end_of_utterance_token=add_end_of_utterance_token)
        failures = Failures("prompt", len(prompts) if many else 0, on_error, stream)
        return self._reply(make, prompts, failures, began, options)

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> Stream: ...
    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @with_options()
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> Reply:
        """The next answer of a conversation; or of several, and then a list of answers comes back.

        Args:
            messages: `Message`s or the dicts of the published guides and of OpenAI's API. Special tokens in their text
                are plain characters.
            answer_start: words that the answer begins with; its text goes on after them, its first space included.
            continue_final_message: the last message is the assistant's and its text goes on: that text and the answer's
                are the whole, with the space between them if there is one. Without it such a message is refused.
            stream, on_error, options: as in `generate`.
        """
        began = time.perf_counter()
        conversations, many = several("messages", messages, "a list of messages, also for one")
        checked_text("answer_start", answer_start, "The picture shows", blank=True)
        checked_flag("continue_final_message", continue_final_message)
        make = partial(self._seeing(options).chat, answer_start=answer_start)
        make = partial(make, continue_final_message=continue_final_message)
        continues = bool(answer_start) or continue_final_message
        failures = Failures("conversation", len(conversations) if many else 0, on_error, stream)
        return self._reply(make, conversations, failures, began, options, continues=continues)

    @with_options(Wishes)
    def submit(
        self, prompt: Prompt, *, start: str = "", continues: bool = False, **wishes: Unpack[Wishes]
    ) -> Stream:
        """Asks for the answer to a prompt that is ready, and waits for nothing: the door of a server.

        `prompt` does what takes its time, and may run in any thread; this may run in an event loop. The stream is
        read by a thread (`for text in stream`) or by a task (`async for delta in stream.deltas()`).

        Args:
            prompt: as `prompt` makes it.
            start: words that the answer's text begins with.
            continues: whether the text goes on where the prompt ends, and keeps a space at its beginning.

        Raises:
            EngineBusy: as many requests wait as may.
            BadRequest: a setting is wrong, or the prompt can never be answered with them.
        """
        checked_flag("continues", continues)
        checked_text("start", start, "The picture shows", blank=True)
        asking = asking_for(self, time.perf_counter(), wishes, start, continues)
        return Stream(asking.submit(checked_prompt(prompt), wait=False))

    def _seeing(self, options: Options) -> Processor:
        """What makes the prompts of a call; the options that are about pictures go no further."""
        return self.processor.looking(
            ImageDetail(options.pop("detail", "high"), options.pop("max_tiles", None))
        )

    def _reply(
        self,
        make: Callable[[Any], Prompt],
        items: Sequence[Any],
        failures: Failures,
        began: float,
        options: Options,
        start: str = "",
        continues: bool = False,
    ) -> Reply:
        """Answers the prompts that `make` makes of `items`; `start` and `continues` are as in `submit`."""
        many = failures.total > 0
        if failures.stream and many:
            raise BadSetting(f"stream=True takes one prompt, not {len(items)}: call it once for each")
        asking = asking_for(self, began, options, start, continues)
        if failures.stream:
            return Stream(asking.submit(made(make, items[0], asking.deadline)))
        answers = asking.answers(ahead(make, items, asking.deadline), failures)
        return answers if many else answers[0]
