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
from idefics.server import likelihood, neutral_fields
from idefics.server.answers import ChatShape
from idefics.server.bodies import JSONRoute
from idefics.server.events import DONE, Events, event
from idefics.server.faults import Fault
from idefics.server.fields import (
    MOST_MESSAGES,
    MOST_TOKENS,
    NEW_TOKENS,
    Asked,
    MessageField,
    ReasoningField,
    Unkept,
    pictures_of,
    texts_of,
)
from idefics.server.neutral import Unused
from idefics.server.output_format import JsonSchema, one_format, with_format
from idefics.server.request_object import Fields
from idefics.server.usage import notes_of, usage_of
from idefics.server.visit import Visit
from idefics.server.wiring import Serving, Visiting, described

router = APIRouter(tags=["OpenAI"], route_class=JSONRoute)


class SchemaFormat(Fields):
    """JSON of one kind."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: the JSON schema of the answer."""
        return {"schema": self.json_schema.schema_}


class ChatRequest(Asked):
    """A conversation, and how it is to be continued."""

    unused: ClassVar[Unused] = neutral_fields.CHAT

    messages: list[MessageField] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: one_format(SchemaFormat) | None = None  # type: ignore[valid-type]
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: Unkept | None = None
    reasoning: ReasoningField | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def continues(self) -> bool:
        """Whether the last message goes on: the answer either does that or begins a new turn."""
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt is continues:
            message = (
                "continue_final_message and add_generation_prompt are both true: give one"
                if continues
                else "add_generation_prompt is false: leave it out for a new turn of the assistant, or give "
                "continue_final_message to go on with its last message"
            )
            raise Fault(400, message, param="add_generation_prompt")
        return continues

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call."""
        one, other = self.max_tokens, self.max_completion_tokens
        if one and other and one != other:
            message = f"max_tokens is {one} and max_completion_tokens {other}: give one"
            raise Fault(400, message, param="max_tokens")
        wishes = super().wishes() | {"max_new_tokens": other or one or NEW_TOKENS}
        wishes |= {"logprobs": bool(self.logprobs), "top_logprobs": self.top_logprobs or 0}
        return with_format(wishes, self.response_format)


@router.post("/v1/chat/completions", responses=described(ChatShape, streams=True))
async def chat(asked: ChatRequest, service: Serving, visit: Visiting) -> Response:
    """The next answer of a conversation of words and pictures."""
    service.check_model(asked.model)
    messages = [message.message() for message in asked.messages]
    visit.check_texts(texts_of(messages))
    make = partial(service.vlm.prompt, messages, continue_final_message=asked.continues)
    choices, pictures = asked.n or 1, pictures_of(messages)
    await visit.ask(make, asked.wishes(), choices=choices, pictures=pictures, continues=asked.continues)
    head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": service.settings.served}
    if asked.stream:
        return Events(_chunks(visit, head, asked))
    answers = await visit.answers()
    found = [
        {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _logprobs(service.tokenizer, answer),
            "finish_reason": answer.finish,
        }
        for number, answer in enumerate(answers)
    ]
    usage = usage_of(*(answer.usage for answer in answers))
    return JSONResponse(
        {**head, "object": "chat.completion", "choices": found, "usage": usage, **notes_of(answers)}
    )


async def _chunks(visit: Visit, head: dict[str, Any], asked: ChatRequest) -> AsyncGenerator[bytes]:
    """The same answer in pieces."""
    head = {**head, "object": "chat.completion.chunk"}
    tokenizer = visit.service.tokenizer

    def chunk(
        number: int, delta: dict[str, Any], logprobs: Any = None, answer: Answer | None = None
    ) -> bytes:
        finish, notes = (answer.finish, notes_of([answer])) if answer else (None, {})
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**head, "choices": [choice], **({"usage": None} if asked.tells_usage else {}), **notes})

    for number in range(len(visit.streams)):
        yield chunk(number, {"role": "assistant", "content": ""})
    async for number, delta in visit.deltas():
        if delta.text or delta.logprobs:
            yield chunk(number, {"content": delta.text}, _logprobs(tokenizer, delta))
    answers = [stream.answer for stream in visit.streams]
    for number, answer in enumerate(answers):
        yield chunk(number, {}, answer=answer)
    if asked.tells_usage:
        yield event({**head, "choices": [], "usage": usage_of(*(answer.usage for answer in answers))})
    yield DONE


def _logprobs(tokenizer: Tokenizer, said: Answer | Delta) -> dict[str, Any] | None:
    content = likelihood.content(tokenizer, said)
    return None if content is None else {"content": content, "refusal": None}
