"""What `/v1/responses` answers: a response as it grows, and the events that tell of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from idefics.messages import Answer, Usage
from idefics.server.errors import APIError
from idefics.server.logprobs import chat_logprobs
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.sse import format_event
from idefics.server.usage import collect_notes

if TYPE_CHECKING:
    from idefics.server.responses import ResponseRequest


class ResponseBuilder:
    """One response, as it grows."""

    def __init__(self, context: RequestContext, request: ResponseRequest) -> None:
        self.context, self.request = context, request
        self.id, self.item_id = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self.created_at = int(time.time())
        self.sequence_numbers: Iterator[int] = count()

    def response_object(self, answer: Answer | None = None) -> dict[str, Any]:
        """The whole object; without an answer, while it is being written."""
        request = self.request
        is_truncated = answer is not None and answer.finish == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": response_status(answer),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_truncated else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self.context.service.settings.served_model_name,
            "output": [] if answer is None else [self.output_item(answer)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature or 0.0,
            "text": {"format": self.text_format()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else format_response_usage(answer.usage),
            "user": request.user,
            **({} if answer is None else collect_notes([answer])),
        }

    def text_format(self) -> dict[str, Any]:
        """What was said of the answer's form."""
        output_format: RequestModel | None = self.request.text and self.request.text.format
        return (
            output_format.model_dump(by_alias=True, exclude_none=True) if output_format else {"type": "text"}
        )

    def output_item(self, answer: Answer | None = None) -> dict[str, Any]:
        """The one message of the output."""
        content = [] if answer is None else [self.content_part(answer)]
        return {
            "type": "message",
            "id": self.item_id,
            "status": response_status(answer),
            "role": "assistant",
            "content": content,
        }

    def content_part(self, answer: Answer | None = None) -> dict[str, Any]:
        """The text of that message."""
        logprobs = None if answer is None else chat_logprobs(self.context.service.tokenizer, answer)
        return {
            "type": "output_text",
            "text": "" if answer is None else answer.text,
            "annotations": [],
            "logprobs": logprobs or [],
        }

    async def stream_events(self) -> AsyncGenerator[bytes]:
        """What happens, in OpenAI's order."""
        position_fields = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        yield self._format_event("response.created", response=self.response_object())
        yield self._format_event("response.in_progress", response=self.response_object())
        yield self._format_event("response.output_item.added", output_index=0, item=self.output_item())
        yield self._format_event("response.content_part.added", **position_fields, part=self.content_part())
        async for _, delta in self.context.deltas():
            logprobs = chat_logprobs(self.context.service.tokenizer, delta) or []
            yield self._format_event(
                "response.output_text.delta", **position_fields, delta=delta.text, logprobs=logprobs
            )
        answer = self.context.streams[0].answer
        content_part = self.content_part(answer)
        final_fields = {"text": answer.text, "logprobs": content_part["logprobs"]}
        yield self._format_event("response.output_text.done", **position_fields, **final_fields)
        yield self._format_event("response.content_part.done", **position_fields, part=content_part)
        yield self._format_event("response.output_item.done", output_index=0, item=self.output_item(answer))
        yield self._format_event(f"response.{response_status(answer)}", response=self.response_object(answer))

    def error_event(self, error: APIError) -> bytes:
        """The last event of a response that has failed."""
        return self._format_event("error", code=error.code, message=error.message, param=error.param)

    def _format_event(self, name: str, **fields: Any) -> bytes:
        return format_event({"type": name, "sequence_number": next(self.sequence_numbers), **fields}, name)


def response_status(answer: Answer | None) -> str:
    if answer is None:
        return "in_progress"
    return "incomplete" if answer.finish == "length" else "completed"


def format_response_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.prompt_tokens - usage.cached_tokens,  # what is read is kept
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
