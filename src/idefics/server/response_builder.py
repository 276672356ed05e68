"""Builds the answer of `/v1/responses`, as one object or as a stream of events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from idefics.messages import Answer, Usage
from idefics.server.errors import APIError
from idefics.server.logprobs import token_logprobs
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.response_fields import collect_notes
from idefics.server.response_objects import (
    MessageEventType,
    PartEventType,
    ResponseContentPartEvent,
    ResponseEvent,
    ResponseEventFields,
    ResponseEventType,
    ResponseObject,
    ResponseOutputItemEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponsePositionFields,
    ResponseStatus,
    ResponseStreamEvent,
    ResponseUsage,
)
from idefics.server.sse import format_event

if TYPE_CHECKING:
    from idefics.server.responses import ResponseRequest


class ResponseBuilder:
    """Builds the response to one request of `/v1/responses`, as one object or as a stream of events."""

    def __init__(self, context: RequestContext, request: ResponseRequest) -> None:
        self.context, self.request = context, request
        self.id, self.item_id = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self.created_at = int(time.time())
        self.sequence_numbers: Iterator[int] = count()

    def response_object(self, answer: Answer | None = None) -> ResponseObject:
        """The response with its answer; without an answer, the response in progress."""
        request = self.request
        is_truncated = answer is not None and answer.finish == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": _response_status(answer),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_truncated else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self.context.service.settings.served_model_name,
            "output": [] if answer is None else [self._output_message(answer)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature or 0.0,
            "text": {"format": self._text_format()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _response_usage(answer.usage),
            "user": request.user,
            **collect_notes([] if answer is None else [answer]),
        }

    async def stream_events(self) -> AsyncGenerator[bytes]:
        """The formatted events, in OpenAI's order."""
        yield self._format_event(self._response_event("response.created"))
        yield self._format_event(self._response_event("response.in_progress"))
        yield self._format_event(self._message_event("response.output_item.added"))
        yield self._format_event(self._part_event("response.content_part.added"))
        async for _, delta in self.context.deltas():
            yield self._format_event(
                {
                    "type": "response.output_text.delta",
                    **self._next_text_part_fields(),
                    "delta": delta.text,
                    "logprobs": token_logprobs(self.context.service.tokenizer, delta) or [],
                }
            )
        answer = self.context.streams[0].answer
        yield self._format_event(
            {
                "type": "response.output_text.done",
                **self._next_text_part_fields(),
                "text": answer.text,
                "logprobs": token_logprobs(self.context.service.tokenizer, answer) or [],
            }
        )
        yield self._format_event(self._part_event("response.content_part.done", answer))
        yield self._format_event(self._message_event("response.output_item.done", answer))
        last_type: ResponseEventType = (
            "response.incomplete" if answer.finish == "length" else "response.completed"
        )
        yield self._format_event(self._response_event(last_type, answer))

    def error_event(self, error: APIError) -> bytes:
        """The formatted event of an error, which ends the stream."""
        return self._format_event(
            {
                "type": "error",
                **self._next_event_fields(),
                "code": error.code,
                "message": error.message,
                "param": error.param,
            }
        )

    def _format_event(self, event: ResponseStreamEvent) -> bytes:
        """An event as a server-sent event, named by its type."""
        return format_event(event, event["type"])

    def _next_event_fields(self) -> ResponseEventFields:
        """The fields of every event: the next sequence number."""
        return {"sequence_number": next(self.sequence_numbers)}

    def _next_text_part_fields(self) -> ResponsePositionFields:
        """The fields of an event about the text: the next sequence number, and where the text is."""
        return {**self._next_event_fields(), "item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _response_event(self, type: ResponseEventType, answer: Answer | None = None) -> ResponseEvent:
        """An event with the whole response; `answer` is given once it is complete."""
        return {"type": type, **self._next_event_fields(), "response": self.response_object(answer)}

    def _message_event(self, type: MessageEventType, answer: Answer | None = None) -> ResponseOutputItemEvent:
        """An event: the message begins, or is complete (`answer`)."""
        return {
            "type": type,
            **self._next_event_fields(),
            "output_index": 0,
            "item": self._output_message(answer),
        }

    def _part_event(self, type: PartEventType, answer: Answer | None = None) -> ResponseContentPartEvent:
        """An event: the message's text part begins, or is complete (`answer`)."""
        return {"type": type, **self._next_text_part_fields(), "part": self._output_text(answer)}

    def _output_message(self, answer: Answer | None = None) -> ResponseOutputMessage:
        """The answer as a message; without an answer, an empty message in progress."""
        return {
            "type": "message",
            "id": self.item_id,
            "status": _response_status(answer),
            "role": "assistant",
            "content": [] if answer is None else [self._output_text(answer)],
        }

    def _output_text(self, answer: Answer | None = None) -> ResponseOutputText:
        """The answer as a text part; empty without an answer."""
        logprobs = None if answer is None else token_logprobs(self.context.service.tokenizer, answer)
        return {
            "type": "output_text",
            "text": "" if answer is None else answer.text,
            "annotations": [],
            "logprobs": logprobs or [],
        }

    def _text_format(self) -> dict[str, Any]:
        """The format that the request has; text by default."""
        text_format: RequestModel | None = self.request.text and self.request.text.format
        return text_format.model_dump(by_alias=True, exclude_none=True) if text_format else {"type": "text"}


def _response_status(answer: Answer | None) -> ResponseStatus:
    """The status of a response with this answer; None: the answer is still being generated."""
    if answer is None:
        return "in_progress"
    return "incomplete" if answer.finish == "length" else "completed"


def _response_usage(usage: Usage) -> ResponseUsage:
    """The usage under the names of `/v1/responses`."""
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
