"""What `/v1/responses` answers: a response as it grows, and the events that tell of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from idefics.messages import Answer, Usage
from idefics.server import likelihood
from idefics.server.events import event
from idefics.server.faults import Fault
from idefics.server.request_object import Fields
from idefics.server.usage import notes_of
from idefics.server.visit import Visit

if TYPE_CHECKING:
    from idefics.server.responses import ResponseRequest


class Reply:
    """One response, as it grows."""

    def __init__(self, visit: Visit, asked: ResponseRequest) -> None:
        self.visit, self.asked = visit, asked
        self.id, self.item_id = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self.created = int(time.time())
        self.numbers: Iterator[int] = count()

    def response(self, answer: Answer | None = None) -> dict[str, Any]:
        """The whole object; without an answer, while it is being written."""
        asked = self.asked
        is_short = answer is not None and answer.finish == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": _status(answer),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_short else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.visit.service.settings.served,
            "output": [] if answer is None else [self.item(answer)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature or 0.0,
            "text": {"format": self.format()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer.usage),
            "user": asked.user,
            **({} if answer is None else notes_of([answer])),
        }

    def format(self) -> dict[str, Any]:
        """What was said of the answer's form."""
        said: Fields | None = self.asked.text and self.asked.text.format
        return said.model_dump(by_alias=True, exclude_none=True) if said else {"type": "text"}

    def item(self, answer: Answer | None = None) -> dict[str, Any]:
        """The one message of the output."""
        content = [] if answer is None else [self.part(answer)]
        return {
            "type": "message",
            "id": self.item_id,
            "status": _status(answer),
            "role": "assistant",
            "content": content,
        }

    def part(self, answer: Answer | None = None) -> dict[str, Any]:
        """The text of that message."""
        logprobs = None if answer is None else likelihood.content(self.visit.service.tokenizer, answer)
        return {
            "type": "output_text",
            "text": "" if answer is None else answer.text,
            "annotations": [],
            "logprobs": logprobs or [],
        }

    async def events(self) -> AsyncGenerator[bytes]:
        """What happens, in OpenAI's order."""
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())
        yield self._event("response.output_item.added", output_index=0, item=self.item())
        yield self._event("response.content_part.added", **place, part=self.part())
        async for _, delta in self.visit.deltas():
            logprobs = likelihood.content(self.visit.service.tokenizer, delta) or []
            yield self._event("response.output_text.delta", **place, delta=delta.text, logprobs=logprobs)
        answer = self.visit.streams[0].answer
        part = self.part(answer)
        done = {"text": answer.text, "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **place, **done)
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=self.item(answer))
        yield self._event(f"response.{_status(answer)}", response=self.response(answer))

    def error(self, fault: Fault) -> bytes:
        """The last event of a response that has failed."""
        return self._event("error", code=fault.code, message=fault.message, param=fault.param)

    def _event(self, name: str, **more: Any) -> bytes:
        return event({"type": name, "sequence_number": next(self.numbers), **more}, name)


def _status(answer: Answer | None) -> str:
    if answer is None:
        return "in_progress"
    return "incomplete" if answer.finish == "length" else "completed"


def _usage(usage: Usage) -> dict[str, Any]:
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
