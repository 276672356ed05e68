"""Pictures and words in, answers out: joins a checkpoint's processor and the engine.

Knows prompts, sampling and streams. Does not know tasks (they word prompts) nor doors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from idefics.errors import BadSetting, IdeficsError
from idefics.generation.answer_generator import create_answer_generator
from idefics.generation.arguments import as_prompt_list, require_prompt
from idefics.generation.error_policy import ErrorPolicy
from idefics.generation.prefetch import call_with_deadline, prefetch_map
from idefics.generation.scoring import ScoringModel
from idefics.generation.streaming import GenerationResult, Stream
from idefics.messages import ImageDetail
from idefics.options import GenerationOptions, OnError, Options, document_options
from idefics.prompt import Prompt
from idefics.validation import validate_bool, validate_text

if TYPE_CHECKING:
    from idefics.generation.scoring import Conversation, PromptItems
    from idefics.messages import Answer
    from idefics.processing.processor import Processor


class Pipeline(ScoringModel):
    """A loaded model that continues prompts and holds conversations. `Idefics` adds the tasks."""

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, but never a prompt
        self,
        items: PromptItems,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def generate(
        self,
        items: Sequence[PromptItems],
        *,
        stream: Literal[False] = ...,
        on_error: Literal["raise"] = ...,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def generate(
        self,
        items: PromptItems,
        *,
        stream: Literal[True],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Stream: ...
    @overload
    def generate(  # type: ignore[overload-overlap]  # as above
        self,
        items: PromptItems,
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Answer | IdeficsError: ...
    @overload
    def generate(
        self,
        items: Sequence[PromptItems],
        *,
        stream: Literal[False] = ...,
        on_error: Literal["return"],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer | IdeficsError]: ...
    @document_options()
    def generate(
        self,
        items: PromptItems | Sequence[PromptItems],
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        add_end_of_utterance_token: bool | None = None,
        **options: Unpack[Options],
    ) -> GenerationResult:
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
        start_time = time.perf_counter()
        prompts, is_batch = as_prompt_list("items", items, "a list of text and pictures")
        if add_end_of_utterance_token is not None:
            validate_bool("add_end_of_utterance_token", add_end_of_utterance_token)
        make_prompt = partial(
            self._processor_for_detail(options).encode_raw,
            add_end_of_utterance_token=add_end_of_utterance_token,
        )
        error_policy = ErrorPolicy("prompt", len(prompts) if is_batch else 0, on_error, stream)
        return self._generate(make_prompt, prompts, error_policy, start_time, options)

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
    @document_options()
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[Options],
    ) -> GenerationResult:
        """The next answer of a conversation; or of several, and then a list of answers comes back.

        Args:
            messages: `Message`s or the dicts of the published guides and of OpenAI's API. Special tokens in their text
                are plain characters.
            answer_start: words that the answer begins with; its text goes on after them, its first space included.
            continue_final_message: the last message is the assistant's and its text goes on: that text and the answer's
                are the whole, with the space between them if there is one. Without it such a message is refused.
            stream, on_error, options: as in `generate`.
        """
        start_time = time.perf_counter()
        conversations, is_batch = as_prompt_list("messages", messages, "a list of messages, also for one")
        validate_text("answer_start", answer_start, "The picture shows", allow_blank=True)
        validate_bool("continue_final_message", continue_final_message)
        make_prompt = partial(self._processor_for_detail(options).encode_chat, answer_start=answer_start)
        make_prompt = partial(make_prompt, continue_final_message=continue_final_message)
        is_continuation = bool(answer_start) or continue_final_message
        error_policy = ErrorPolicy("conversation", len(conversations) if is_batch else 0, on_error, stream)
        return self._generate(
            make_prompt, conversations, error_policy, start_time, options, is_continuation=is_continuation
        )

    @document_options(GenerationOptions)
    def submit(
        self,
        prompt: Prompt,
        *,
        start: str = "",
        continues: bool = False,
        **options: Unpack[GenerationOptions],
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
        validate_bool("continues", continues)
        validate_text("start", start, "The picture shows", allow_blank=True)
        generator = create_answer_generator(self, time.perf_counter(), options, start, continues)
        return Stream(generator.submit(require_prompt(prompt), wait=False))

    def _processor_for_detail(self, options: Options) -> Processor:
        """What makes the prompts of a call; the options that are about pictures go no further."""
        return self.processor.with_image_detail(
            ImageDetail(options.pop("detail", "high"), options.pop("max_tiles", None))
        )

    def _generate(
        self,
        make_prompt: Callable[[Any], Prompt],
        items: Sequence[Any],
        error_policy: ErrorPolicy,
        start_time: float,
        options: Options,
        text_prefix: str = "",
        is_continuation: bool = False,
    ) -> GenerationResult:
        """Answers the prompts that `make_prompt` makes of `items`; `text_prefix` and `is_continuation` are as in `submit`."""
        is_batch = error_policy.num_inputs > 0
        if error_policy.stream and is_batch:
            raise BadSetting(f"stream=True takes one prompt, not {len(items)}: call it once for each")
        generator = create_answer_generator(self, start_time, options, text_prefix, is_continuation)
        if error_policy.stream:
            return Stream(generator.submit(call_with_deadline(make_prompt, items[0], generator.deadline)))
        answers = generator.generate_many(prefetch_map(make_prompt, items, generator.deadline), error_policy)
        return answers if is_batch else answers[0]
