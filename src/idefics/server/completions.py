"""`/v1/completions`: continues texts. Special tokens in a prompt are read as plain text, as on every route."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from idefics.messages import Answer, Delta, Timings, Usage
from idefics.server import ignored_field_tables
from idefics.server.choices import ChoiceFields, ChoicesResponseBuilder
from idefics.server.errors import APIError
from idefics.server.logprobs import (
    CompletionLogprobs,
    TokenTextDecoder,
    completion_logprobs,
    compute_prompt_logprobs,
    concatenate_logprobs,
)
from idefics.server.request_model import text_or_list
from idefics.server.response_fields import (
    ChoicesFields,
    CompletionUsage,
    ProgressField,
    ResponseFields,
    ResponseFinishReason,
    StreamUsageField,
)
from idefics.server.routing import JSONBodyRoute, RequestContextDep, document_responses, select_model
from idefics.server.sampling_fields import MAX_NEW_TOKENS, ChoicesRequest

DEFAULT_MAX_TOKENS = 16  # OpenAI's default for this route
MAX_PROMPTS = 128  # prompts times `n`

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


PromptTexts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


class CompletionRequest(ChoicesRequest):
    """One or several texts to continue, and options for the continuations."""

    ignored_fields = ignored_field_tables.COMPLETION_FIELDS

    prompt: text_or_list(str, PromptTexts, "give a text or a list of texts")  # type: ignore[valid-type]
    max_tokens: int | None = Field(None, ge=0, le=MAX_NEW_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None

    def generation_kwargs(self) -> dict[str, Any]:
        """The given fields as keyword arguments of `Idefics.submit`."""
        return self.sampling_kwargs() | {
            "max_new_tokens": self.max_tokens or DEFAULT_MAX_TOKENS,
            "logprobs": self.logprobs is not None,
            "top_logprobs": self.logprobs or 0,
            "continues": True,
        }


class CompletionFields(ChoicesFields):
    """Fields of the answer of `/v1/completions`, streamed or not."""

    object: Literal["text_completion"]


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


class CompletionChunk(CompletionFields, StreamUsageField, ProgressField):
    """An event of a stream of `/v1/completions`."""

    choices: list[CompletionChunkChoice]


@router.post("/v1/completions", responses=document_responses(CompletionResponse, CompletionChunk))
async def complete(request: CompletionRequest, context: RequestContextDep) -> Response:
    """Continues each prompt, without a chat template."""
    select_model(context, request.model)
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if (count := len(texts) * (request.n or 1)) > MAX_PROMPTS:
        message = f"{len(texts)} prompts with n={request.n} are {count} answers; the limit is {MAX_PROMPTS}"
        raise APIError(400, f"{message}: send fewer prompts", param="prompt")
    if request.streams_progress and len(texts) > 1:
        message = f"include_progress is for one prompt, and there are {len(texts)}: send one, or leave it out"
        raise APIError(400, message, param="stream_options")
    for text in texts:
        context.check_and_count_texts([text])
    common_fields = {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model,
    }
    builder = _CompletionResponseBuilder(context, request, common_fields)
    return await builder.build_response(partial(builder.submit, texts))


@dataclass
class _CompletionResponseBuilder(ChoicesResponseBuilder):
    """Builds the response to one completion request.

    Attributes:
        prefixes: what the text of each choice begins with: its prompt with `echo`, otherwise None.
        token_texts: the decoder of each choice's tokens.
        text_offsets: where the next text of each choice begins.
    """

    request: CompletionRequest

    prefixes: list[Delta | None] = field(default_factory=list)
    token_texts: list[TokenTextDecoder] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)

    last_chunk_fields: ClassVar[ChoiceFields] = {"text": "", "logprobs": None}

    async def submit(self, texts: Sequence[str]) -> None:
        """Submits the prompts, or sets `empty_answers` where no tokens are generated; sets what their texts begin with.

        Raises:
            APIError, IdeficsError: as `RequestContext.submit_prompt`.
        """
        context, request, num_choices = self.context, self.request, self.request.n or 1
        for text in texts:
            make_prompt = partial(context.vlm.prompt, [text])
            prefix = Delta(text, ()) if request.echo else None
            if request.echo and request.logprobs is not None:
                prefix = await compute_prompt_logprobs(context, make_prompt, text, request.logprobs)
            if request.max_tokens == 0:
                prompt = await context.run_in_worker(make_prompt)
                context.record_prompt_metrics(prompt)
                logprobs = None if request.logprobs is None else ()
                answer = Answer("", (), "length", Usage(len(prompt), 0, 0, 0), Timings(0, 0, 0), logprobs)
                self.empty_answers += [answer] * num_choices
            else:
                await context.submit_prompt(make_prompt, request.generation_kwargs(), num_choices=num_choices)
            self.prefixes += [prefix] * num_choices
        self.token_texts = [TokenTextDecoder(context.service.tokenizer) for _ in self.prefixes]
        self.text_offsets = [len(prefix.text) if prefix else 0 for prefix in self.prefixes]

    def choice_fields(self, index: int, answer: Answer) -> ChoiceFields:
        """The fields of a choice that is not streamed: its text, after its prompt with `echo`; log-probabilities."""
        prefix, completion = self.first_chunk_fields(index), self.chunk_fields(index, answer)
        return {
            "text": prefix.get("text", "") + answer.text,
            "logprobs": concatenate_logprobs(prefix.get("logprobs"), completion["logprobs"]),
        }

    def first_chunk_fields(self, index: int) -> ChoiceFields:
        """The fields of a choice's first chunk: with `echo` the prompt and its log-probabilities; else empty."""
        prefix = self.prefixes[index]
        if prefix is None:
            return {}
        token_texts = TokenTextDecoder(self.context.service.tokenizer)
        return {"text": prefix.text, "logprobs": completion_logprobs(token_texts, prefix, 0)}

    def chunk_fields(self, index: int, delta: Answer | Delta) -> ChoiceFields:
        """The fields of the chunk for a delta: the text that it adds, and log-probabilities."""
        logprobs = completion_logprobs(self.token_texts[index], delta, self.text_offsets[index])
        self.text_offsets[index] += len(delta.text)
        return {"text": delta.text, "logprobs": logprobs}
