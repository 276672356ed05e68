"""`/v1/completions`: continues texts. Special tokens in a prompt are read as plain text, as on every route."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag

from idefics.messages import Answer, Delta, Timings, Usage
from idefics.server import ignored_field_tables
from idefics.server.errors import APIError
from idefics.server.logprobs import (
    CompletionLogprobs,
    TokenTextDecoder,
    completion_logprobs,
    concatenate_logprobs,
)
from idefics.server.prompt_logprobs import compute_prompt_logprobs
from idefics.server.request_body import JSONBodyRoute
from idefics.server.request_context import RequestContext
from idefics.server.response_fields import (
    CompletionUsage,
    NotesField,
    ResponseFields,
    ResponseFinishReason,
    StreamUsageField,
    collect_notes,
    finish_reason,
    sum_usage_of_prompts,
)
from idefics.server.routing import RequestContextDep, ServerStateDep, document_responses
from idefics.server.sampling_fields import MAX_NEW_TOKENS, OpenAIRequest, text_or_list_tag
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event

DEFAULT_MAX_TOKENS = 16  # OpenAI's default for this route
MAX_PROMPTS = 128  # prompts times `n`

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class CompletionRequest(OpenAIRequest):
    """One or several texts to continue, and options for the continuations."""

    ignored_fields = ignored_field_tables.COMPLETION_FIELDS

    prompt: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[str], Tag("<parts>"), Field(min_length=1, max_length=MAX_PROMPTS)],
        Discriminator(
            lambda value: text_or_list_tag(value) if isinstance(value, str | list) else None,
            custom_error_type="no_prompt",
            custom_error_message="give a text or a list of texts",
        ),
    ]
    max_tokens: int | None = Field(None, ge=0, le=MAX_NEW_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None

    @property
    def prompt_texts(self) -> list[str]:
        """The prompts as a list.

        Raises:
            APIError: 400, more than `MAX_PROMPTS` answers in total.
        """
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if (count := len(texts) * (self.n or 1)) > MAX_PROMPTS:
            message = f"{len(texts)} prompts with n={self.n} are {count} answers; the limit is {MAX_PROMPTS}"
            raise APIError(400, f"{message}: send fewer prompts", param="prompt")
        return texts

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the answer includes the log-probabilities of the prompts' tokens."""
        return bool(self.echo) and self.logprobs is not None

    def generation_kwargs(self) -> dict[str, Any]:
        """The given fields as keyword arguments of `Idefics.submit`."""
        kwargs = super().generation_kwargs() | {"max_new_tokens": self.max_tokens or DEFAULT_MAX_TOKENS}
        return kwargs | {"logprobs": self.logprobs is not None, "top_logprobs": self.logprobs or 0}


class CompletionFields(NotesField):
    """Fields of the answer of `/v1/completions`, streamed or not."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str


class CompletionChoice(ResponseFields):
    """One of `n` continuations of a prompt, and why it ended."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: ResponseFinishReason


class CompletionResponse(CompletionFields):
    """The answer of `/v1/completions`: the choices of the first prompt, then those of the second, and so on."""

    choices: list[CompletionChoice]
    usage: CompletionUsage


class CompletionChunkChoice(ResponseFields):
    """What a chunk adds to one continuation of a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: ResponseFinishReason | None


class CompletionChunk(CompletionFields, StreamUsageField):
    """An event of a stream of `/v1/completions`."""

    choices: list[CompletionChunkChoice]


@router.post("/v1/completions", responses=document_responses(CompletionResponse, event_type=CompletionChunk))
async def complete(
    request: CompletionRequest, service: ServerStateDep, context: RequestContextDep
) -> Response:
    """Continues each prompt, without a chat template."""
    service.check_model(request.model)
    num_choices = request.n or 1
    prefixes, prompt_lengths = [], []
    for text in request.prompt_texts:
        context.check_and_count_texts([text])
    for text in request.prompt_texts:
        make_prompt = partial(service.vlm.prompt, [text])
        prefix = Delta(text if request.echo else "", ())
        if request.wants_prompt_logprobs:
            prefix = await compute_prompt_logprobs(context, make_prompt, text, request.logprobs or 0)
        if request.max_tokens == 0:
            prompt = await context.run_in_worker(make_prompt)
            context.record_prompt_metrics(prompt)
            prompt_lengths.append(len(prompt))
        else:
            await context.submit_prompt(
                make_prompt, request.generation_kwargs(), num_choices=num_choices, continues_text=True
            )
        prefixes += [prefix] * num_choices
    builder = _CompletionResponseBuilder(context, request, prefixes, prompt_lengths)
    if request.stream:
        return EventStreamResponse(builder.stream_events())
    return JSONResponse(await builder.response_object())


class _CompletionResponseBuilder:
    """Builds the response to one completion request, as one object or as a stream of chunks.

    Args:
        prefixes: what the text of each choice begins with: its prompt with `echo`, otherwise nothing.
        prompt_lengths: tokens of each prompt, if no tokens are generated (`max_tokens` is 0); otherwise empty.
    """

    def __init__(
        self,
        context: RequestContext,
        request: CompletionRequest,
        prefixes: list[Delta],
        prompt_lengths: list[int],
    ) -> None:
        self.context, self.request, self.prefixes = context, request, prefixes
        logprobs = () if request.logprobs is not None else None
        self.empty_answers = [
            Answer("", (), "length", Usage(length, 0, 0, 0), Timings(0, 0, 0), logprobs)
            for length in prompt_lengths
            for _ in range(request.n or 1)
        ]
        self.token_texts = [TokenTextDecoder(context.service.tokenizer) for _ in prefixes]
        self.text_offsets = [0] * len(prefixes)  # characters of each choice that have been formatted
        self.common_fields: CompletionFields = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": context.service.settings.served_model_name,
        }
        self.usage_field: StreamUsageField = {"usage": None} if request.streams_usage else {}

    async def response_object(self) -> CompletionResponse:
        """The complete answer, once all choices have ended."""
        answers = self.empty_answers or await self.context.answers()
        choices: list[CompletionChoice] = []
        for index, answer in enumerate(answers):
            prefix, completion = self._echoed_prompt_choice(index), self._generated_text_choice(index, answer)
            choices.append(
                {
                    "index": index,
                    "text": prefix["text"] + completion["text"],
                    "logprobs": concatenate_logprobs(prefix["logprobs"], completion["logprobs"]),
                    "finish_reason": finish_reason(answer),
                }
            )
        return {
            **self.common_fields,
            "choices": choices,
            "usage": self._sum_usage(answers),
            **collect_notes(answers),
        }

    async def stream_events(self) -> AsyncGenerator[bytes]:
        """The formatted events: echoed prompts, then text, then last chunks, then the usage."""
        if self.request.echo:
            for index in range(len(self.prefixes)):
                yield format_event(self._chunk(self._echoed_prompt_choice(index)))
        if not self.empty_answers:
            async for index, delta in self.context.deltas():
                yield format_event(self._chunk(self._generated_text_choice(index, delta)))
        answers = self.empty_answers or [stream.answer for stream in self.context.streams]
        for index, answer in enumerate(answers):
            final_choice: CompletionChunkChoice = {
                "index": index,
                "text": "",
                "logprobs": None,
                "finish_reason": finish_reason(answer),
            }
            yield format_event(self._chunk(final_choice, answer))
        if self.request.streams_usage:
            usage_chunk: CompletionChunk = {
                **self.common_fields,
                "choices": [],
                "usage": self._sum_usage(answers),
            }
            yield format_event(usage_chunk)
        yield DONE_EVENT

    def _chunk(self, choice: CompletionChunkChoice, answer: Answer | None = None) -> CompletionChunk:
        """A chunk of a choice; `answer` is the whole choice, if this is its last chunk."""
        notes: NotesField = {} if answer is None else collect_notes([answer])
        return {**self.common_fields, "choices": [choice], **self.usage_field, **notes}

    def _echoed_prompt_choice(self, index: int) -> CompletionChunkChoice:
        """The chunk that a choice begins with: the echoed prompt, or an empty text."""
        prefix = self.prefixes[index]
        self.text_offsets[index] = len(prefix.text)
        token_texts = TokenTextDecoder(self.context.service.tokenizer)
        logprobs = completion_logprobs(token_texts, prefix, 0)
        return {"index": index, "text": prefix.text, "logprobs": logprobs, "finish_reason": None}

    def _generated_text_choice(self, index: int, answer: Answer | Delta) -> CompletionChunkChoice:
        """The chunk for generated text: a delta, or a whole answer. Advances `text_offsets`."""
        logprobs = completion_logprobs(self.token_texts[index], answer, self.text_offsets[index])
        self.text_offsets[index] += len(answer.text)
        return {"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": None}

    def _sum_usage(self, answers: list[Answer]) -> CompletionUsage:
        """The usage of all prompts; `answers` has the `n` choices of each prompt in a row."""
        num_choices = self.request.n or 1
        return sum_usage_of_prompts(
            [answer.usage for answer in answers[start : start + num_choices]]
            for start in range(0, len(answers), num_choices)
        )
