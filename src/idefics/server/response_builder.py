"""The answer of `/v1/responses`, as one object or as a stream of events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from itertools import count
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from fastapi.responses import JSONResponse, Response

from idefics.messages import Answer, Delta, Usage
from idefics.server.logprobs import TokenLogprobWithTop, token_logprobs
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.response_fields import NotesField, PromptTokensDetails, ResponseFields, collect_notes
from idefics.server.sse import EventStreamResponse, format_event

if TYPE_CHECKING:
    from idefics.server.responses import ResponseRequest


ResponseStatus = Literal["in_progress", "completed", "incomplete"]


class ResponseOutputText(ResponseFields):
    """The text of the answer, with log-probabilities if requested."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[TokenLogprobWithTop]


class ResponseOutputMessage(ResponseFields):
    """The answer as a message of the assistant."""

    type: Literal["message"]
    id: str
    status: ResponseStatus
    role: Literal["assistant"]
    content: list[ResponseOutputText]


class InputTokensDetails(PromptTokensDetails):
    """Number of prompt tokens found in the prefix cache, and of those added to it."""

    cache_write_tokens: int


class OutputTokensDetails(ResponseFields):
    """Number of generated tokens that are reasoning; none, since the server has no reasoning models."""

    reasoning_tokens: Literal[0]


class ResponseUsage(ResponseFields):
    """Tokens of a request: of its prompt, and of the answer."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(NotesField):
    """The answer of `/v1/responses`: its message, and the options of the request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: ResponseStatus
    error: None
    incomplete_details: dict[Literal["reason"], Literal["max_output_tokens"]] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ResponseOutputMessage]
    parallel_tool_calls: Literal[False]
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[Literal["format"], dict[str, Any]]
    tool_choice: Literal["none"]
    tools: list[None]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ResponseEventFields(ResponseFields):
    """Fields of every event: its number in the stream, from 0."""

    sequence_number: int


class ResponseEvent(ResponseEventFields):
    """The response begins (`created`, `in_progress`) or ends (`completed`, `incomplete`)."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    response: ResponseObject


class ResponseOutputItemEvent(ResponseEventFields):
    """The message of the answer begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: ResponseOutputMessage


class ResponsePositionFields(ResponseEventFields):
    """Where in the response the text of the answer is."""

    item_id: str
    output_index: int
    content_index: int


class ResponseContentPartEvent(ResponsePositionFields):
    """The text of the answer begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: ResponseOutputText


class ResponseTextDeltaEvent(ResponsePositionFields):
    """The text of the answer grows by `delta`."""

    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprobWithTop]


class ResponseTextDoneEvent(ResponsePositionFields):
    """The text of the answer is complete."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprobWithTop]


class ResponseErrorEvent(ResponseEventFields):
    """The response failed; the last event of the stream."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None


ResponseStreamEvent = (
    ResponseEvent
    | ResponseOutputItemEvent
    | ResponseContentPartEvent
    | ResponseTextDeltaEvent
    | ResponseTextDoneEvent
    | ResponseErrorEvent
)


class ResponseBuilder:
    """Builds the response to one request of `/v1/responses`, as one object or as a stream of events."""

    def __init__(self, context: RequestContext, request: ResponseRequest) -> None:
        self.context, self.request = context, request
        self.id, self.item_id = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self.created_at = int(time.time())
        self.sequence_numbers = count()

    def response_object(self, answer: Answer | None = None) -> ResponseObject:
        """The response object with the complete answer; `answer` None: the response is still in progress."""
        request, status = self.request, _response_status(answer)
        text_format: RequestModel | None = request.text and request.text.format
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": request.model,
            "output": [self._output_message(answer)] if answer else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature or 0.0,
            "text": {
                "format": text_format.model_dump(by_alias=True, exclude_none=True)
                if text_format
                else {"type": "text"}
            },
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": _response_usage(answer.usage) if answer else None,
            "user": request.user,
            **collect_notes([answer] if answer else []),
        }

    async def build_response(self) -> Response:
        """The response: the complete answer, or a stream of events."""
        if self.request.stream:
            return EventStreamResponse(
                self._stream_events(),
                lambda error: self._format_event(
                    "error", code=error.code, message=error.message, param=error.param
                ),
            )
        (answer,) = await self.context.wait_for_answers()
        return JSONResponse(self.response_object(answer))

    async def _stream_events(self) -> AsyncGenerator[bytes]:
        """The formatted events of the stream, in the order in which OpenAI's API sends them."""
        item_position = {"output_index": 0}
        text_position = {"item_id": self.item_id, **item_position, "content_index": 0}
        for event_type in ("response.created", "response.in_progress"):
            yield self._format_event(event_type, response=self.response_object())
        yield self._format_event("response.output_item.added", **item_position, item=self._output_message())
        yield self._format_event("response.content_part.added", **text_position, part=self._output_text())
        async for _, delta in self.context.deltas():
            yield self._format_event(
                "response.output_text.delta",
                **text_position,
                delta=delta.text,
                logprobs=self._token_logprobs(delta),
            )
        (answer,) = self.context.answers
        text_part, message = self._output_text(answer), self._output_message(answer)
        yield self._format_event(
            "response.output_text.done",
            **text_position,
            text=answer.text,
            logprobs=text_part["logprobs"],
        )
        yield self._format_event("response.content_part.done", **text_position, part=text_part)
        yield self._format_event("response.output_item.done", **item_position, item=message)
        response = self.response_object(answer)
        yield self._format_event(f"response.{response['status']}", response=response)

    def _format_event(self, event_type: str, **fields: object) -> bytes:
        """A server-sent event with the next sequence number, named by its type (see `ResponseStreamEvent`)."""
        event = {"type": event_type, "sequence_number": next(self.sequence_numbers), **fields}
        return format_event(event, event_type)

    def _output_message(self, answer: Answer | None = None) -> ResponseOutputMessage:
        """The answer as a message of the assistant; without an answer, an empty message in progress."""
        return {
            "type": "message",
            "id": self.item_id,
            "status": _response_status(answer),
            "role": "assistant",
            "content": [self._output_text(answer)] if answer else [],
        }

    def _output_text(self, answer: Answer | None = None) -> ResponseOutputText:
        """The answer as a text part; empty without an answer."""
        return {
            "type": "output_text",
            "text": answer.text if answer else "",
            "annotations": [],
            "logprobs": self._token_logprobs(answer) if answer else [],
        }

    def _token_logprobs(self, answer: Answer | Delta) -> list[TokenLogprobWithTop]:
        """The log-probabilities of an answer's tokens; an empty list if not requested."""
        return token_logprobs(self.context.service.tokenizer, answer) or []


def _response_status(answer: Answer | None) -> ResponseStatus:
    """The status of a response with this answer; None: the answer is still being generated."""
    if answer is None:
        return "in_progress"
    return "incomplete" if answer.finish == "length" else "completed"


def _response_usage(usage: Usage) -> ResponseUsage:
    """The usage with the field names of `/v1/responses`."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.prompt_tokens - usage.cached_tokens,  # every prompt token is cached
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
