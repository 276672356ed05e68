"""`/v1/responses`: the same conversations in OpenAI's newer words. Nothing is kept, so each request says everything."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag

from idefics.messages import Answer, Detail, Message, Part, Usage
from idefics.server import likelihood
from idefics.server.answers import ResponseShape
from idefics.server.events import Events, event
from idefics.server.faults import Fault
from idefics.server.fields import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOKENS,
    NEW_TOKENS,
    Choosing,
    Fields,
    JsonSchema,
    Unkept,
    by_type,
    content_kind,
    one_format,
    picture_at,
    pictures_of,
)
from idefics.server.visit import Visit
from idefics.server.wiring import Serving, Visiting, described

router = APIRouter(tags=["OpenAI"])


class TextPart(Fields):
    """Words; those of an answer come back as they were given out."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[None] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=MOST_TOKENS)

    def part(self) -> Part:
        """As the rest of the house says it."""
        return self.text


class ImagePart(Fields):
    """A picture among them."""

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def part(self) -> Part:
        """As the rest of the house says it."""
        return picture_at(self.image_url, self.detail, self.max_tiles)


PartField = Annotated[
    Annotated[TextPart, Tag("<input_text>")]
    | Annotated[TextPart, Tag("<output_text>")]
    | Annotated[ImagePart, Tag("<input_image>")],
    by_type("a part", "unknown_part", "input_text", "input_image", "output_text"),
]


class ItemField(Fields):
    """One turn of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[PartField], Tag("<parts>"), Field(min_length=1, max_length=MOST_PARTS)],
        Discriminator(content_kind),
    ]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def message(self) -> Message:
        """As the rest of the house says it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if isinstance(content, str):
            return Message(role, (content,))
        return Message(role, tuple(part.part() for part in content))


class SchemaFormat(JsonSchema):
    """JSON of one kind."""

    type: Literal["json_schema"]

    @property
    def form(self) -> dict[str, Any]:
        """The JSON schema of the answer."""
        return self.schema_


class TextField(Fields):
    """What the answer looks like."""

    format: one_format(SchemaFormat) | None = None  # type: ignore[valid-type]


class ResponseRequest(Choosing):
    """A conversation, and how it is to be continued."""

    model: str
    input: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[ItemField], Tag("<items>"), Field(min_length=1, max_length=MOST_MESSAGES)],
        Discriminator(lambda value: "<words>" if isinstance(value, str) else "<items>"),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    text: TextField | None = None
    stream: bool | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = Field(None, max_length=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = Field(None, max_length=512)
    store: Unkept | None = None
    truncation: Literal["disabled"] | None = None

    def messages(self) -> list[Message]:
        """The conversation."""
        start = [Message("system", (self.instructions,))] if self.instructions else []
        if isinstance(self.input, str):
            return [*start, Message("user", (self.input,))]
        return [*start, *(item.message() for item in self.input)]

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call."""
        wishes = super().wishes() | {"max_new_tokens": self.max_output_tokens or NEW_TOKENS}
        wishes |= {"logprobs": bool(self.include), "top_logprobs": self.top_logprobs or 0}
        form = self.text and self.text.format and self.text.format.form
        return wishes | ({"schema": form} if form else {})


@router.post("/v1/responses", responses=described(ResponseShape, streams=True))
async def respond(asked: ResponseRequest, service: Serving, visit: Visiting) -> Response:
    """The next answer of a conversation of words and pictures."""
    service.check_model(asked.model)
    messages = asked.messages()
    make = partial(service.vlm.prompt, messages)
    await visit.ask(make, asked.wishes(), pictures=pictures_of(messages))
    reply = Reply(visit, asked)
    if asked.stream:
        return Events(reply.events(), reply.error)
    (answer,) = await visit.answers()
    return JSONResponse(reply.response(answer))


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
