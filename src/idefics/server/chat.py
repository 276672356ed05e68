"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from idefics.messages import Answer, Usage
from idefics.server.events import DONE, Events, event
from idefics.server.faults import Fault
from idefics.server.fields import (
    MOST_CHOICES,
    MOST_MESSAGES,
    MOST_STOPS,
    NEW_TOKENS,
    Choosing,
    Fields,
    MessageField,
    Stop,
    count_pictures,
)
from idefics.server.visit import Visit
from idefics.server.wiring import Serving, Visiting, faults

router = APIRouter(tags=["OpenAI"])


class StreamOptions(Fields):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None


class ChatRequest(Choosing):
    """A conversation, and how it is to be continued."""

    model: str
    messages: list[MessageField] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: Literal[False] | None = None

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call."""
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise Fault(
                400,
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}: give one",
                param="max_tokens",
            )
        most = self.max_completion_tokens or self.max_tokens or NEW_TOKENS
        wishes = super().wishes() | {"max_new_tokens": most, "logprobs": bool(self.logprobs)}
        if self.stop:
            wishes["stop"] = self.stop
        return wishes


@router.post("/v1/chat/completions", responses=faults())
async def chat(asked: ChatRequest, service: Serving, visit: Visiting) -> Response:
    """The next answer of a conversation of words and pictures."""
    service.check_model(asked.model)
    messages = [message.message() for message in asked.messages]
    pictures, choices = count_pictures(messages), asked.n or 1
    make = partial(service.vlm.prompt, messages)
    await visit.ask(make, asked.wishes(), choices=choices, pictures=pictures)
    head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": service.settings.served}
    if asked.stream:
        options = asked.stream_options or StreamOptions()
        return Events(chunks(visit, head, with_usage=bool(options.include_usage)))
    answers = await visit.answers()
    found = [_choice(number, answer) for number, answer in enumerate(answers)]
    return JSONResponse(
        {**head, "object": "chat.completion", "choices": found, "usage": usage_of([a.usage for a in answers])}
    )


async def chunks(visit: Visit, head: dict[str, Any], *, with_usage: bool) -> AsyncGenerator[bytes]:
    """The same answer in pieces."""
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(number: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    for number in range(len(visit.streams)):
        yield chunk(number, {"role": "assistant", "content": ""})
    async for number, delta in visit.deltas():
        if delta.text:
            yield chunk(number, {"content": delta.text})
    answers = [stream.answer for stream in visit.streams]
    for number, answer in enumerate(answers):
        yield chunk(number, {}, answer.finish)
    if with_usage:
        yield event({**head, "choices": [], "usage": usage_of([answer.usage for answer in answers])})
    yield DONE


def _choice(number: int, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {"index": number, "message": message, "logprobs": None, "finish_reason": answer.finish}


def usage_of(usages: Sequence[Usage]) -> dict[str, int]:
    """What all choices cost together; they share their prompt."""
    prompt, answers = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}
