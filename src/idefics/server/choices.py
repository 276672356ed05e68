"""Answers with `n` choices, as one object or as a stream of chunks: what chat completions and completions share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from fastapi.responses import JSONResponse, Response

from idefics.messages import Answer, Delta
from idefics.server.request_context import RequestContext
from idefics.server.response_fields import collect_notes, sum_usage
from idefics.server.sampling_fields import ChoicesRequest
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event, stream_with_progress

ChoiceFields = Mapping[str, Any]  # fields of a choice between its `index` and its `finish_reason`


@dataclass
class ChoicesResponseBuilder(ABC):
    """Builds the response to one request, as one object or as a stream of chunks.

    Attributes:
        common_fields: the fields that all chunks have.
        empty_answers: the choices, if no tokens are generated.
        last_chunk_fields: the fields of the last chunk of each choice.
    """

    context: RequestContext
    request: ChoicesRequest
    common_fields: Mapping[str, object]
    empty_answers: list[Answer] = field(default_factory=list)

    last_chunk_fields: ClassVar[ChoiceFields]

    @abstractmethod
    def choice_fields(self, index: int, answer: Answer) -> ChoiceFields:
        """The fields of a choice in a response that is not streamed.

        Args:
            index: number of the choice, from 0.
            answer: the complete answer.
        """

    @abstractmethod
    def first_chunk_fields(self, index: int) -> ChoiceFields:
        """The fields of the first chunk of the choice number `index`; empty: it has no chunk before its text."""

    @abstractmethod
    def chunk_fields(self, index: int, delta: Delta) -> ChoiceFields:
        """The fields of the chunk that adds a delta to the choice number `index`; empty: no chunk is sent for it."""

    async def build_response(self, submit: Callable[[], Coroutine[Any, Any, None]]) -> Response:
        """The response: with the complete answer, once all choices have ended, or with a stream of chunks.

        Args:
            submit: makes the prompts and submits them to the engine. If the progress is streamed, the response begins
                before, so that an error of `submit` is its last event.
        """
        if self.request.streams_progress:
            self.context.start_reporting()
            work = partial(self.context.submit_and_wait_for_prompt, submit)
            fields = {**self.common_fields, "choices": []}
            return EventStreamResponse(
                stream_with_progress(self.context.progress, work, fields, self._stream_events())
            )
        await submit()
        if self.request.stream:
            return EventStreamResponse(self._stream_events())
        answers = self.empty_answers or await self.context.wait_for_answers()
        choices = [
            {"index": index, **self.choice_fields(index, answer), "finish_reason": answer.finish}
            for index, answer in enumerate(answers)
        ]
        usage = sum_usage(answers, self.request.n or 1)
        return JSONResponse(
            {**self.common_fields, "choices": choices, "usage": usage, **collect_notes(answers)}
        )

    async def _stream_events(self) -> AsyncGenerator[bytes]:
        """The formatted events of the stream: first chunks of all choices, text, last chunks, then the usage."""
        for index in range(len(self.empty_answers or self.context.streams)):
            if fields := self.first_chunk_fields(index):
                yield self._format_chunk(index, fields)
        async for index, delta in self.context.deltas():
            if fields := self.chunk_fields(index, delta):
                yield self._format_chunk(index, fields)
        answers = self.empty_answers or self.context.answers
        for index, answer in enumerate(answers):
            yield self._format_chunk(index, self.last_chunk_fields, answer)
        if self.request.streams_usage:
            yield format_event(
                {**self.common_fields, "choices": [], "usage": sum_usage(answers, self.request.n or 1)}
            )
        yield DONE_EVENT

    def _format_chunk(self, index: int, fields: ChoiceFields, answer: Answer | None = None) -> bytes:
        """The formatted event for a chunk of a choice.

        Args:
            index: number of the choice.
            fields: its fields in this chunk.
            answer: the complete answer, if this is the choice's last chunk, which says why it ended.
        """
        choice = {"index": index, **fields, "finish_reason": answer and answer.finish}
        usage_field = {"usage": None} if self.request.streams_usage else {}
        notes = collect_notes([answer] if answer else [])
        return format_event({**self.common_fields, "choices": [choice], **usage_field, **notes})
