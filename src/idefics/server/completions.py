"""`/v1/completions`: text goes on. Special tokens in it are plain characters, as everywhere in the server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag

from idefics.messages import Answer, Delta
from idefics.server import likelihood, neutral_fields
from idefics.server.answers import CompletionShape
from idefics.server.events import DONE, Events, event
from idefics.server.fields import Asked, content_kind
from idefics.server.neutral import Unused
from idefics.server.usage import usage_of
from idefics.server.visit import Visit
from idefics.server.wiring import Serving, Visiting, described

NEW_TOKENS = 16  # OpenAI's default for this route

router = APIRouter(tags=["OpenAI"])


class CompletionRequest(Asked):
    """A text, and how it goes on."""

    unused: ClassVar[Unused] = neutral_fields.COMPLETION

    prompt: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[str], Tag("<parts>"), Field(min_length=1, max_length=1)],
        Discriminator(content_kind),
    ]
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call."""
        wishes = super().wishes() | {"max_new_tokens": self.max_tokens or NEW_TOKENS}
        return wishes | {"logprobs": self.logprobs is not None, "top_logprobs": self.logprobs or 0}


@router.post("/v1/completions", responses=described(CompletionShape, streams=True))
async def complete(asked: CompletionRequest, service: Serving, visit: Visiting) -> Response:
    """How a text goes on."""
    service.check_model(asked.model)
    make = partial(service.vlm.prompt, [asked.text])
    await visit.ask(make, asked.wishes(), choices=asked.n or 1, continues=True)
    head = {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.settings.served,
    }
    start = asked.text if asked.echo else ""
    if asked.stream:
        return Events(_chunks(visit, head, asked, start))
    answers = await visit.answers()
    texts = [likelihood.TokenTexts(service.tokenizer) for _ in answers]
    choices = [_choice(texts[number], number, start, said, 0) for number, said in enumerate(answers)]
    usage = usage_of(*(answer.usage for answer in answers))
    return JSONResponse({**head, "choices": choices, "usage": usage})


async def _chunks(
    visit: Visit, head: dict[str, Any], asked: CompletionRequest, start: str
) -> AsyncGenerator[bytes]:
    nothing = {"usage": None} if asked.tells_usage else {}
    lengths = [len(start)] * len(visit.streams)
    texts = [likelihood.TokenTexts(visit.service.tokenizer) for _ in lengths]
    if start:
        for number in range(len(lengths)):
            yield event({**head, "choices": [_plain(number, start)], **nothing})
    async for number, delta in visit.deltas():
        choice = _choice(texts[number], number, "", delta, lengths[number])
        lengths[number] += len(delta.text)
        yield event({**head, "choices": [choice], **nothing})
    answers = [stream.answer for stream in visit.streams]
    for number, answer in enumerate(answers):
        yield event({**head, "choices": [_plain(number, "", answer.finish)], **nothing})
    if asked.tells_usage:
        yield event({**head, "choices": [], "usage": usage_of(*(answer.usage for answer in answers))})
    yield DONE


def _choice(
    texts: likelihood.TokenTexts, number: int, start: str, said: Answer | Delta, offset: int
) -> dict[str, Any]:
    finish = said.finish if isinstance(said, Answer) else None
    logprobs = likelihood.legacy(texts, said, offset + len(start))
    return {**_plain(number, start + said.text, finish), "logprobs": logprobs}


def _plain(number: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}
