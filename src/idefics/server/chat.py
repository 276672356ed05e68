"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, ClassVar, Literal
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from idefics.messages import Answer, Delta
from idefics.processing.tokenizer import Tokenizer
from idefics.server import ignored_field_tables, logprobs
from idefics.server.errors import APIError
from idefics.server.ignored_fields import IgnoredFields
from idefics.server.request_body import JSONBodyRoute
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.response_format import JsonSchema, merge_format_kwargs, response_format_field
from idefics.server.response_schemas import ChatCompletionResponse
from idefics.server.routing import RequestContextDep, ServerStateDep, document_responses
from idefics.server.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_MESSAGES,
    MAX_NEW_TOKENS,
    ChatMessage,
    OnlyFalse,
    OpenAIRequest,
    ReasoningConfig,
    message_pictures,
    message_texts,
)
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event
from idefics.server.usage import collect_notes, sum_usage

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class ChatJsonSchemaFormat(RequestModel):
    """JSON of one kind."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: the JSON schema of the answer."""
        return {"schema": self.json_schema.schema_}


class ChatRequest(OpenAIRequest):
    """A conversation, and how it is to be continued."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.CHAT_FIELDS

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: response_format_field(ChatJsonSchemaFormat) | None = None  # type: ignore[valid-type]
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: OnlyFalse | None = None
    reasoning: ReasoningConfig | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def continues_last_message(self) -> bool:
        """Whether the last message goes on: the answer either does that or begins a new turn."""
        continues_last_message = bool(self.continue_final_message)
        if self.add_generation_prompt is continues_last_message:
            message = (
                "continue_final_message and add_generation_prompt are both true: give one"
                if continues_last_message
                else "add_generation_prompt is false: leave it out for a new turn of the assistant, or give "
                "continue_final_message to go on with its last message"
            )
            raise APIError(400, message, param="add_generation_prompt")
        return continues_last_message

    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""
        max_tokens, max_completion_tokens = self.max_tokens, self.max_completion_tokens
        if max_tokens and max_completion_tokens and max_tokens != max_completion_tokens:
            message = (
                f"max_tokens is {max_tokens} and max_completion_tokens {max_completion_tokens}: give one"
            )
            raise APIError(400, message, param="max_tokens")
        kwargs = super().generation_kwargs() | {
            "max_new_tokens": max_completion_tokens or max_tokens or DEFAULT_MAX_NEW_TOKENS
        }
        kwargs |= {"logprobs": bool(self.logprobs), "top_logprobs": self.top_logprobs or 0}
        return merge_format_kwargs(kwargs, self.response_format)


@router.post("/v1/chat/completions", responses=document_responses(ChatCompletionResponse, can_stream=True))
async def chat(request: ChatRequest, service: ServerStateDep, context: RequestContextDep) -> Response:
    """The next answer of a conversation of words and pictures."""
    service.check_model(request.model)
    messages = [message.to_message() for message in request.messages]
    context.check_texts(message_texts(messages))
    make_prompt = partial(service.vlm.prompt, messages, continue_final_message=request.continues_last_message)
    num_choices, pictures = request.n or 1, message_pictures(messages)
    await context.submit_prompt(
        make_prompt,
        request.generation_kwargs(),
        num_choices=num_choices,
        pictures=pictures,
        continues_text=request.continues_last_message,
    )
    common_fields = {
        "id": f"chatcmpl-{uuid4().hex}",
        "created": int(time.time()),
        "model": service.settings.served_model_name,
    }
    if request.stream:
        return EventStreamResponse(_stream_events(context, common_fields, request))
    answers = await context.answers()
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _format_logprobs(service.tokenizer, answer),
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    usage = sum_usage(*(answer.usage for answer in answers))
    return JSONResponse(
        {
            **common_fields,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage,
            **collect_notes(answers),
        }
    )


async def _stream_events(
    context: RequestContext, common_fields: dict[str, Any], request: ChatRequest
) -> AsyncGenerator[bytes]:
    """The same answer in pieces."""
    common_fields = {**common_fields, "object": "chat.completion.chunk"}
    tokenizer = context.service.tokenizer

    def format_chunk(
        number: int, delta: dict[str, Any], logprobs: Any = None, answer: Answer | None = None
    ) -> bytes:
        finish, notes = (answer.finish, collect_notes([answer])) if answer else (None, {})
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return format_event(
            {
                **common_fields,
                "choices": [choice],
                **({"usage": None} if request.streams_usage else {}),
                **notes,
            }
        )

    for index in range(len(context.streams)):
        yield format_chunk(index, {"role": "assistant", "content": ""})
    async for index, delta in context.deltas():
        if delta.text or delta.logprobs:
            yield format_chunk(index, {"content": delta.text}, _format_logprobs(tokenizer, delta))
    answers = [stream.answer for stream in context.streams]
    for index, answer in enumerate(answers):
        yield format_chunk(index, {}, answer=answer)
    if request.streams_usage:
        yield format_event(
            {**common_fields, "choices": [], "usage": sum_usage(*(answer.usage for answer in answers))}
        )
    yield DONE_EVENT


def _format_logprobs(tokenizer: Tokenizer, answer: Answer | Delta) -> dict[str, Any] | None:
    content = logprobs.chat_logprobs(tokenizer, answer)
    return None if content is None else {"content": content, "refusal": None}
