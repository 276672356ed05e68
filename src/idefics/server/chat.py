"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, ClassVar, Literal, NotRequired
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from idefics.messages import Answer, Delta
from idefics.server import ignored_field_tables
from idefics.server.chat_messages import MAX_MESSAGES, ChatMessage, submit_conversation
from idefics.server.choices import ChoiceFields, ChoicesResponseBuilder
from idefics.server.errors import APIError
from idefics.server.logprobs import TokenLogprobWithTop, token_logprobs
from idefics.server.response_fields import (
    ChoicesFields,
    CompletionUsage,
    ProgressField,
    ResponseFields,
    ResponseFinishReason,
    StreamUsageField,
)
from idefics.server.response_format import JsonSchema, ResponseFormat, response_format_field_type
from idefics.server.routing import JSONBodyRoute, RequestContextDep, document_responses, select_model
from idefics.server.sampling_fields import ChoicesRequest, ConversationRequest, TokenLimit

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class ChatJsonSchemaFormat(ResponseFormat):
    """The `response_format` for JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The schema as the keyword argument `schema` of `Idefics.submit`."""
        return {"schema": self.json_schema.schema_}


class ChatRequest(ChoicesRequest, ConversationRequest):
    """A conversation, and options for its next message."""

    ignored_fields = ignored_field_tables.CHAT_FIELDS

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    response_format: response_format_field_type(ChatJsonSchemaFormat) | None = None  # type: ignore[valid-type]
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def generation_kwargs(self) -> dict[str, Any]:
        """The given fields as keyword arguments of `Idefics.submit`.

        Raises:
            APIError: 400, fields contradict each other.
        """
        continues_last_message = bool(self.continue_final_message)
        if self.add_generation_prompt is continues_last_message:
            message = (
                "continue_final_message and add_generation_prompt are both true: give one"
                if continues_last_message
                else "add_generation_prompt is false: leave it out for a new turn of the assistant, or give "
                "continue_final_message to go on with its last message"
            )
            raise APIError(400, message, param="add_generation_prompt")
        max_tokens, max_completion_tokens = self.max_tokens, self.max_completion_tokens
        if max_tokens and max_completion_tokens and max_tokens != max_completion_tokens:
            message = (
                f"max_tokens is {max_tokens} and max_completion_tokens {max_completion_tokens}: give one"
            )
            raise APIError(400, message, param="max_tokens")
        kwargs = self.conversation_kwargs(
            max_completion_tokens or max_tokens, bool(self.logprobs), self.response_format
        )
        return kwargs | {"continues": continues_last_message}


class ChatLogprobs(ResponseFields):
    """The log-probabilities of a choice: one entry for each generated token."""

    content: list[TokenLogprobWithTop]
    refusal: None


class ChatResponseMessage(ResponseFields):
    """The answer as a message of the assistant."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ResponseFields):
    """One of the `n` answers, and why it ended."""

    index: int
    message: ChatResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: ResponseFinishReason


class ChatCompletionResponse(ChoicesFields):
    """The answer of `/v1/chat/completions`: one object, unless it is streamed."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatDelta(ResponseFields):
    """What a chunk adds to a message: the role in its first chunk, text in the following ones, nothing in its last."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(ResponseFields):
    """What a chunk adds to one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ResponseFinishReason | None


class ChatCompletionChunk(ChoicesFields, StreamUsageField, ProgressField):
    """An event of a stream of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


@router.post(
    "/v1/chat/completions",
    responses=document_responses(ChatCompletionResponse, ChatCompletionChunk),
)
async def chat(request: ChatRequest, context: RequestContextDep) -> Response:
    """Generates the next message of a conversation with pictures."""
    select_model(context, request.model)
    messages = [message.to_message() for message in request.messages]
    submit = partial(
        submit_conversation, context, messages, request.generation_kwargs(), num_choices=request.n or 1
    )
    common_fields = {
        "id": f"chatcmpl-{uuid4().hex}",
        "created": int(time.time()),
        "model": request.model,
        "object": "chat.completion.chunk" if request.stream else "chat.completion",
    }
    return await _ChatResponseBuilder(context, request, common_fields).build_response(submit)


class _ChatResponseBuilder(ChoicesResponseBuilder):
    """Builds the response to one chat request."""

    last_chunk_fields: ClassVar[ChoiceFields] = {"delta": {}, "logprobs": None}

    def choice_fields(self, index: int, answer: Answer) -> ChoiceFields:
        """The fields of a choice that is not streamed: its message and log-probabilities."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(answer)}

    def first_chunk_fields(self, index: int) -> ChoiceFields:
        """The fields of a choice's first chunk: the role, and an empty text."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def chunk_fields(self, index: int, delta: Delta) -> ChoiceFields:
        """The fields of the chunk for a delta: its text and log-probabilities; empty if it has neither."""
        if not (delta.text or delta.logprobs):
            return {}
        return {"delta": {"content": delta.text}, "logprobs": self._logprobs(delta)}

    def _logprobs(self, answer: Answer | Delta) -> ChatLogprobs | None:
        """The log-probabilities of an answer, or of the tokens that a delta adds; None if not requested."""
        content = token_logprobs(self.context.service.tokenizer, answer)
        return None if content is None else {"content": content, "refusal": None}
