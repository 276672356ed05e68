"""`/v1/completions`: texts go on. Special tokens in them are plain characters, as everywhere in the server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag

from idefics.messages import Answer, Delta, Timings, Usage
from idefics.server import ignored_field_tables
from idefics.server.errors import APIError
from idefics.server.ignored_fields import IgnoredFields
from idefics.server.logprobs import TokenTextDecoder, completion_logprobs, concatenate_logprobs
from idefics.server.prompt_logprobs import compute_prompt_logprobs
from idefics.server.request_body import JSONBodyRoute
from idefics.server.request_context import RequestContext
from idefics.server.response_schemas import CompletionResponse
from idefics.server.routing import RequestContextDep, ServerStateDep, document_responses
from idefics.server.schemas import MAX_NEW_TOKENS, OpenAIRequest, content_tag
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event
from idefics.server.usage import collect_notes, sum_usage_of_prompts

DEFAULT_MAX_TOKENS = 16  # OpenAI's default for this route
MAX_PROMPTS = 128  # and most answers to them in all

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class CompletionRequest(OpenAIRequest):
    """Texts, and how they go on."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.COMPLETION_FIELDS

    prompt: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[str], Tag("<parts>"), Field(min_length=1, max_length=MAX_PROMPTS)],
        Discriminator(
            lambda value: content_tag(value) if isinstance(value, str | list) else None,
            custom_error_type="no_prompt",
            custom_error_message="give a text or a list of texts",
        ),
    ]
    max_tokens: int | None = Field(None, ge=0, le=MAX_NEW_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None

    @property
    def prompt_texts(self) -> list[str]:
        """The prompts.

        Raises:
            Fault: they have more answers than are given to one request.
        """
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if (count := len(texts) * (self.n or 1)) > MAX_PROMPTS:
            message = (
                f"{len(texts)} prompts with n={self.n} are {count} answers; at most {MAX_PROMPTS} are given"
            )
            raise APIError(400, f"{message}: send fewer prompts", param="prompt")
        return texts

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the log-probabilities of the prompts' own tokens are told."""
        return bool(self.echo) and self.logprobs is not None

    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""
        kwargs = super().generation_kwargs() | {"max_new_tokens": self.max_tokens or DEFAULT_MAX_TOKENS}
        return kwargs | {"logprobs": self.logprobs is not None, "top_logprobs": self.logprobs or 0}


@router.post("/v1/completions", responses=document_responses(CompletionResponse, can_stream=True))
async def complete(
    request: CompletionRequest, service: ServerStateDep, context: RequestContextDep
) -> Response:
    """How texts go on: the choices of the first one, then those of the second, and so on."""
    service.check_model(request.model)
    prefixes, prompt_lengths = [], []
    for text in request.prompt_texts:
        context.check_texts([text])
    for text in request.prompt_texts:
        make_prompt = partial(service.vlm.prompt, [text])
        prefix = Delta(text if request.echo else "", ())
        if request.wants_prompt_logprobs:
            prefix = await compute_prompt_logprobs(context, make_prompt, text, request.logprobs or 0)
        if request.max_tokens == 0:
            context.count_prompt(prompt := await context.run_in_worker(make_prompt))
            prompt_lengths.append(len(prompt))
        else:
            await context.submit_prompt(
                make_prompt, request.generation_kwargs(), num_choices=request.n or 1, continues_text=True
            )
        prefixes += [prefix] * (request.n or 1)
    builder = _CompletionBuilder(context, request, prefixes, prompt_lengths)
    if request.stream:
        return EventStreamResponse(builder.stream_events())
    return JSONResponse(await builder.response_object())


class _CompletionBuilder:
    """What is answered.

    Args:
        prefixes: what each choice's text begins with: its prompt, where it is asked for.
        prompt_lengths: how many tokens each prompt has, where nothing is to be added to them.
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
        self.text_offsets = [0] * len(prefixes)
        self.common_fields = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": context.service.settings.served_model_name,
        }

    async def response_object(self) -> dict[str, Any]:
        """The answer as one object."""
        answers = self.empty_answers or await self.context.answers()
        choices = []
        for index, answer in enumerate(answers):
            prefix, completion = (
                self._prefix_choice(index),
                self._completion_choice(index, answer, answer.finish),
            )
            logprobs = concatenate_logprobs(prefix["logprobs"], completion["logprobs"])
            choices.append({**completion, "text": prefix["text"] + completion["text"], "logprobs": logprobs})
        return {
            **self.common_fields,
            "choices": choices,
            "usage": self._sum_usage(answers),
            **collect_notes(answers),
        }

    async def stream_events(self) -> AsyncGenerator[bytes]:
        """The answer in pieces."""
        usage_field = {"usage": None} if self.request.streams_usage else {}
        if self.request.echo:
            for index in range(len(self.prefixes)):
                yield format_event(
                    {**self.common_fields, "choices": [self._prefix_choice(index)], **usage_field}
                )
        if not self.empty_answers:
            async for index, delta in self.context.deltas():
                yield format_event(
                    {**self.common_fields, "choices": [self._completion_choice(index, delta)], **usage_field}
                )
        answers = self.empty_answers or [stream.answer for stream in self.context.streams]
        for index, answer in enumerate(answers):
            final_choice = {"index": index, "text": "", "logprobs": None, "finish_reason": answer.finish}
            yield format_event(
                {**self.common_fields, "choices": [final_choice], **usage_field, **collect_notes([answer])}
            )
        if self.request.streams_usage:
            yield format_event({**self.common_fields, "choices": [], "usage": self._sum_usage(answers)})
        yield DONE_EVENT

    def _prefix_choice(self, index: int) -> dict[str, Any]:
        token_texts = TokenTextDecoder(self.context.service.tokenizer)
        prefix = self.prefixes[index]
        self.text_offsets[index] = len(prefix.text)
        logprobs = completion_logprobs(token_texts, prefix, 0)
        return {"index": index, "text": prefix.text, "logprobs": logprobs, "finish_reason": None}

    def _completion_choice(
        self, index: int, answer: Answer | Delta, finish_reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = completion_logprobs(self.token_texts[index], answer, self.text_offsets[index])
        self.text_offsets[index] += len(answer.text)
        return {"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _sum_usage(self, answers: list[Answer]) -> dict[str, Any]:
        choices_per_prompt = self.request.n or 1
        return sum_usage_of_prompts(
            [answer.usage for answer in answers[start : start + choices_per_prompt]]
            for start in range(0, len(answers), choices_per_prompt)
        )
