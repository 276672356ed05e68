"""`/v1/completions`: texts go on. Special tokens in them are plain characters, as everywhere in the server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag

from idefics.messages import Answer, Delta, Timings, Usage
from idefics.server import likelihood, neutral_fields
from idefics.server.answers import CompletionShape
from idefics.server.bodies import JSONRoute
from idefics.server.events import DONE, Events, event
from idefics.server.faults import Fault
from idefics.server.fields import MOST_TOKENS, Asked, content_kind
from idefics.server.neutral import Unused
from idefics.server.prompt_logprobs import prompt_logprobs
from idefics.server.usage import notes_of, usage_of_prompts
from idefics.server.visit import Visit
from idefics.server.wiring import Serving, Visiting, described

NEW_TOKENS = 16  # OpenAI's default for this route
MOST_PROMPTS = 128  # and most answers to them in all

router = APIRouter(tags=["OpenAI"], route_class=JSONRoute)


class CompletionRequest(Asked):
    """Texts, and how they go on."""

    unused: ClassVar[Unused] = neutral_fields.COMPLETION

    prompt: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[str], Tag("<parts>"), Field(min_length=1, max_length=MOST_PROMPTS)],
        Discriminator(
            lambda value: content_kind(value) if isinstance(value, str | list) else None,
            custom_error_type="no_prompt",
            custom_error_message="give a text or a list of texts",
        ),
    ]
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The prompts.

        Raises:
            Fault: they have more answers than are given to one request.
        """
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if (count := len(texts) * (self.n or 1)) > MOST_PROMPTS:
            message = (
                f"{len(texts)} prompts with n={self.n} are {count} answers; at most {MOST_PROMPTS} are given"
            )
            raise Fault(400, f"{message}: send fewer prompts", param="prompt")
        return texts

    @property
    def scores_prompts(self) -> bool:
        """Whether the log-probabilities of the prompts' own tokens are told."""
        return bool(self.echo) and self.logprobs is not None

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call."""
        wishes = super().wishes() | {"max_new_tokens": self.max_tokens or NEW_TOKENS}
        return wishes | {"logprobs": self.logprobs is not None, "top_logprobs": self.logprobs or 0}


@router.post("/v1/completions", responses=described(CompletionShape, streams=True))
async def complete(asked: CompletionRequest, service: Serving, visit: Visiting) -> Response:
    """How texts go on: the choices of the first one, then those of the second, and so on."""
    service.check_model(asked.model)
    starts, lengths = [], []
    for text in asked.texts:
        visit.check_texts([text])
    for text in asked.texts:
        make = partial(service.vlm.prompt, [text])
        own = Delta(text if asked.echo else "", ())
        if asked.scores_prompts:
            own = await prompt_logprobs(visit, make, text, asked.logprobs or 0)
        if asked.max_tokens == 0:
            visit.count(prompt := await visit.aside(make))
            lengths.append(len(prompt))
        else:
            await visit.ask(make, asked.wishes(), choices=asked.n or 1, continues=True)
        starts += [own] * (asked.n or 1)
    written = _CompletionResponse(visit, asked, starts, lengths)
    if asked.stream:
        return Events(written.chunks())
    return JSONResponse(await written.whole())


class _CompletionResponse:
    """What is answered.

    Args:
        starts: what each choice's text begins with: its prompt, where it is asked for.
        lengths: how many tokens each prompt has, where nothing is to be added to them.
    """

    def __init__(
        self, visit: Visit, asked: CompletionRequest, starts: list[Delta], lengths: list[int]
    ) -> None:
        self.visit, self.asked, self.starts = visit, asked, starts
        nothing = () if asked.logprobs is not None else None
        self.unchanged = [
            Answer("", (), "length", Usage(length, 0, 0, 0), Timings(0, 0, 0), nothing)
            for length in lengths
            for _ in range(asked.n or 1)
        ]
        self.texts = [likelihood.TokenTexts(visit.service.tokenizer) for _ in starts]
        self.lengths = [0] * len(starts)
        self.head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": visit.service.settings.served,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        answers = self.unchanged or await self.visit.answers()
        choices = []
        for number, answer in enumerate(answers):
            start, rest = self._start(number), self._choice(number, answer, answer.finish)
            logprobs = likelihood.joined(start["logprobs"], rest["logprobs"])
            choices.append({**rest, "text": start["text"] + rest["text"], "logprobs": logprobs})
        return {**self.head, "choices": choices, "usage": self._usage(answers), **notes_of(answers)}

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answer in pieces."""
        nothing = {"usage": None} if self.asked.tells_usage else {}
        if self.asked.echo:
            for number in range(len(self.starts)):
                yield event({**self.head, "choices": [self._start(number)], **nothing})
        if not self.unchanged:
            async for number, delta in self.visit.deltas():
                yield event({**self.head, "choices": [self._choice(number, delta)], **nothing})
        answers = self.unchanged or [stream.answer for stream in self.visit.streams]
        for number, answer in enumerate(answers):
            last = {"index": number, "text": "", "logprobs": None, "finish_reason": answer.finish}
            yield event({**self.head, "choices": [last], **nothing, **notes_of([answer])})
        if self.asked.tells_usage:
            yield event({**self.head, "choices": [], "usage": self._usage(answers)})
        yield DONE

    def _start(self, number: int) -> dict[str, Any]:
        texts = likelihood.TokenTexts(self.visit.service.tokenizer)
        start = self.starts[number]
        self.lengths[number] = len(start.text)
        logprobs = likelihood.legacy(texts, start, 0)
        return {"index": number, "text": start.text, "logprobs": logprobs, "finish_reason": None}

    def _choice(self, number: int, said: Answer | Delta, finish: str | None = None) -> dict[str, Any]:
        logprobs = likelihood.legacy(self.texts[number], said, self.lengths[number])
        self.lengths[number] += len(said.text)
        return {"index": number, "text": said.text, "logprobs": logprobs, "finish_reason": finish}

    def _usage(self, answers: list[Answer]) -> dict[str, Any]:
        each = self.asked.n or 1
        return usage_of_prompts(
            [answer.usage for answer in answers[first : first + each]]
            for first in range(0, len(answers), each)
        )
