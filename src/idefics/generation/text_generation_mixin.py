"""`TextGenerationMixin`: the methods of `Idefics` that generate answers to raw prompts and conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Unpack, overload

from idefics.engine.request import RequestProgress
from idefics.errors import IdeficsError
from idefics.generation.generation_call import GenerationCall
from idefics.generation.loading import LoadedModel
from idefics.generation.prompts import EXAMPLE_START, parse_prompts_argument, require_prompt
from idefics.generation.streaming import GenerationResult, Stream
from idefics.messages import Answer
from idefics.options import (
    AnswerKeywords,
    GenerationOptions,
    OnError,
    OnErrorReturnKeywords,
    Options,
    StreamKeywords,
    document_and_check_options,
    pop_image_detail,
)
from idefics.prompt import Prompt
from idefics.validation import validate_bool, validate_callback, validate_text

if TYPE_CHECKING:
    from idefics.generation.prompts import Conversation, PromptItems


class TextGenerationMixin:
    """Generates answers to raw prompts, conversations and prompts that were made before."""

    loaded_model: LoadedModel

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, but never a prompt
        self,
        items: PromptItems,
        *,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[AnswerKeywords],
    ) -> Answer:
        """`generate` for one raw prompt: its answer."""

    @overload
    def generate(
        self,
        items: Sequence[PromptItems],
        *,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[AnswerKeywords],
    ) -> list[Answer]:
        """`generate` for several raw prompts: an answer for each."""

    @overload
    def generate(
        self,
        items: PromptItems,
        *,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[StreamKeywords],
    ) -> Stream:
        """`generate` for one raw prompt with `stream=True`: a stream of its answer."""

    @overload
    def generate(  # type: ignore[overload-overlap]  # as above
        self,
        items: PromptItems,
        *,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[OnErrorReturnKeywords],
    ) -> Answer | IdeficsError:
        """`generate` for one raw prompt with `on_error="return"`: its answer or its error."""

    @overload
    def generate(
        self,
        items: Sequence[PromptItems],
        *,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[OnErrorReturnKeywords],
    ) -> list[Answer | IdeficsError]:
        """`generate` for several raw prompts with `on_error="return"`: an answer or an error for each."""

    @document_and_check_options()
    def generate(
        self,
        items: PromptItems | Sequence[PromptItems],
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        add_end_of_utterance_token: bool | None = None,
        **options: Unpack[Options],
    ) -> GenerationResult:
        """Continues a raw prompt, which is given to the model exactly as it is; or each of several.

        Args:
            items: text and pictures in any order, or a list of such lists. Special tokens in the text are recognised.
            stream: return a `Stream`; one prompt only.
            on_error: "raise" the first error, with the number of its prompt; or "return" each error in the place of
                its answer, and answer the other prompts.
            add_end_of_utterance_token: whether Idefics 1 puts its `<end_of_utterance>` between neighbouring texts;
                None: if the checkpoint has that token.
            **options: see `Options`. By default greedy, with at most 256 new tokens.

        Returns:
            The answer, which does not repeat the prompt; a list of answers for a list of prompts.

        Raises:
            BadRequest: a picture, a prompt or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.generate(["photo.jpg", "This is an image of"], max_new_tokens=20).text
        """
        image_detail, call = pop_image_detail(options), GenerationCall(self.loaded_model, options)
        prompts, error_policy = parse_prompts_argument(
            "items", items, "a list of text and pictures", "prompt", on_error, stream
        )
        if add_end_of_utterance_token is not None:
            validate_bool("add_end_of_utterance_token", add_end_of_utterance_token)
        processor = self.loaded_model.processor.with_image_detail(image_detail)

        encode = partial(processor.encode_raw, add_end_of_utterance_token=add_end_of_utterance_token)
        return call.answer(encode, prompts, error_policy)

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[AnswerKeywords],
    ) -> Answer:
        """`chat` for one conversation: its answer."""

    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[AnswerKeywords],
    ) -> list[Answer]:
        """`chat` for several conversations: an answer for each."""

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[StreamKeywords],
    ) -> Stream:
        """`chat` for one conversation with `stream=True`: a stream of its answer."""

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[OnErrorReturnKeywords],
    ) -> Answer | IdeficsError:
        """`chat` for one conversation with `on_error="return"`: its answer or its error."""

    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        **options: Unpack[OnErrorReturnKeywords],
    ) -> list[Answer | IdeficsError]:
        """`chat` for several conversations with `on_error="return"`: an answer or an error for each."""

    @document_and_check_options()
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
        """Generates the next answer of a conversation; or of each of several.

        Args:
            messages: `Message` objects, or the dicts of the published guides and of OpenAI's API; or a list of such
                conversations. Special tokens in their text are plain characters.
            answer_start: text that the answer begins with (prefill). The returned text does not repeat it, and begins
                with the space after it, if there is one.
            continue_final_message: the last message is the assistant's, and its text is continued: that text and the
                answer's text joined are the whole. Without it such a conversation is refused.
            stream: return a `Stream`; one conversation only.
            on_error: "raise" the first error, with the number of its conversation; or "return" each error in the place
                of its answer, and answer the other conversations.
            **options: see `Options`. By default greedy, with at most 256 new tokens.

        Returns:
            The answer; a list of answers for a list of conversations.

        Raises:
            BadRequest: a picture, a message or an option is wrong.
            RequestTimeout: `timeout` is over.

        Examples:
            >>> vlm.chat([idefics.user(idefics.Picture("photo.jpg"), "What is this?")]).text
        """
        conversations, error_policy = parse_prompts_argument(
            "messages", messages, "a list of messages, also for one", "conversation", on_error, stream
        )
        validate_text("answer_start", answer_start, EXAMPLE_START, allow_blank=True)
        validate_bool("continue_final_message", continue_final_message)
        processor = self.loaded_model.processor.with_image_detail(pop_image_detail(options))
        call = GenerationCall(
            self.loaded_model,
            options,
            is_continuation=bool(answer_start) or continue_final_message,
        )

        encode = partial(
            processor.encode_chat, answer_start=answer_start, continue_final_message=continue_final_message
        )
        return call.answer(encode, conversations, error_policy)

    @document_and_check_options(GenerationOptions)
    def submit(
        self,
        prompt: Prompt,
        *,
        start: str = "",
        continues: bool = False,
        on_progress: Callable[[RequestProgress], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Submits a prompt and returns at once, for servers: it may be called in an event loop.

        `prompt` does the slow part of the work and may run in any thread. The stream is read by a thread
        (`for text in stream`) or by an asyncio task (`async for delta in stream.deltas()`).

        Args:
            prompt: a prompt made by `prompt`.
            start: text that the answer's text begins with, before the generated text.
            continues: the answer continues the prompt's text, so that a space at its beginning is kept.
            on_progress: called with a `RequestProgress` while the request waits and its prompt is computed, by
                a thread that it must not block; the last call has all prompt tokens done.
            **options: see `GenerationOptions`; the options about pictures are arguments of `prompt`.

        Returns:
            The stream of the answer.

        Raises:
            EngineBusy: the queue of waiting requests is full.
            BadRequest: an option is wrong, or the prompt is too long.
        """
        validate_bool("continues", continues)
        validate_text("start", start, EXAMPLE_START, allow_blank=True)
        validate_callback("on_progress", on_progress)
        call = GenerationCall(
            self.loaded_model,
            options,
            text_prefix=start,
            is_continuation=continues,
        )
        return Stream(call.submit(require_prompt(prompt), wait=False, on_progress=on_progress))
