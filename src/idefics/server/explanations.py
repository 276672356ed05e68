"""`/v1/images/tasks/explain`: which parts of a picture carried the words of an answer, or labels."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from idefics.engine.handle import RequestHandle
from idefics.engine.request import Request, RequestProgress
from idefics.errors import EngineBusy
from idefics.explain.explanation import Explanation, Method
from idefics.explain.occlusion import TokenEvidence
from idefics.messages import Usage
from idefics.server.chat_messages import MAX_MESSAGES
from idefics.server.errors import APIError
from idefics.server.request_model import RequestModel
from idefics.server.response_fields import (
    NotesField,
    ProgressFields,
    ResponseFields,
    TaskUsage,
    completion_usage,
)
from idefics.server.routing import JSONBodyRoute, RequestContextDep, document_responses, read_json_or_form
from idefics.server.sampling_fields import StreamFields, TokenLimit
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event, stream_with_progress
from idefics.server.tasks import (
    Label,
    PictureRequest,
    TaskInputs,
    document_request_body,
)
from idefics.tasks import classify
from idefics.tasks.explanation_call import MAX_GRID, MIN_GRID, ExplanationCall, PreparedExplanation

MAX_PASSES_AT_ONCE = 4  # of one explanation, so that answers of other clients are computed in between
BUSY_SECONDS = 0.05  # until a pass is submitted again that found the engine's queue full

PROGRESS_FIELDS = {"object": "image.explanation.progress"}  # of an event with progress

router = APIRouter(prefix="/v1/images/tasks", tags=["Tasks"], route_class=JSONBodyRoute)


class EarlierTurn(RequestModel):
    """A question of a chat, and what was answered."""

    question: str
    answer: str


class ExplanationRequest(PictureRequest, StreamFields):
    """A picture, and a question or labels; without an answer the model's own is explained.

    `earlier`: the turns of a chat before the question; the first shows the picture.
    """

    words: str | None = None
    answer: str | None = None
    task: str = "ask"
    labels: list[Label] | None = Field(None, min_length=2, max_length=classify.MAX_LABELS)
    earlier: list[EarlierTurn] = Field([], max_length=MAX_MESSAGES // 2)
    method: Method = "occlusion"
    grid: int = Field(16, ge=MIN_GRID, le=MAX_GRID)
    max_new_tokens: TokenLimit | None = None


class PictureSize(ResponseFields):
    """The size of a picture in pixels."""

    width: int
    height: int


class WordExplanation(ResponseFields):
    """A word or label: for each picture rows of cells, with the heat of each in the explanation's unit."""

    text: str
    tokens: list[int]
    log_probability: float
    log_probability_without_picture: float
    words_share: float
    heat: list[list[list[float]]]


class ExplanationResponse(NotesField):
    """How much each part of the picture carried each word; an event of a stream is the same, known so far."""

    object: Literal["image.explanation"]
    answer: str
    method: str
    unit: str
    is_ranking: bool
    num_passes: int
    max_passes: int
    pictures: list[PictureSize]
    words: list[WordExplanation]
    usage: TaskUsage


class ExplanationProgressEvent(ResponseFields):
    """An event of a stream with `include_progress`: how far the explanation is."""

    object: Literal["image.explanation.progress"]
    progress: ProgressFields


@router.post(
    "/explain",
    name="explain",
    summary="Say which parts of a picture carried the words of an answer, or labels.",
    responses=document_responses(ExplanationResponse, ExplanationResponse | ExplanationProgressEvent),
    openapi_extra={"requestBody": document_request_body(ExplanationRequest)},
)
async def handle_explanation(request: HTTPRequest, context: RequestContextDep) -> Response:
    """Answers with the explanation, or with a stream of explanations that get finer."""
    body, file = await read_json_or_form(request, ExplanationRequest)
    if body.streams_progress:
        context.start_reporting()
    if body.earlier and body.answer is None:
        raise APIError(400, "earlier turns are given without an answer: give the answer too", param="answer")
    inputs = TaskInputs(context, body, file)
    earlier = [(turn.question, turn.answer) for turn in body.earlier]
    texts = [body.words or "", body.answer or "", *(body.labels or ()), *chain.from_iterable(earlier)]
    inputs.check_and_count_texts(" ".join(texts))
    call = ExplanationCall(
        model=inputs.vlm.loaded_model,
        shots=inputs.shots,
        question=body.words,
        answer=body.answer,
        labels=body.labels,
        method=body.method,
        grid=body.grid,
        task_name=body.task,
        image_detail=inputs.detail,
        max_new_tokens=body.max_new_tokens,
        earlier=earlier,
    )
    explainer = _Explainer(inputs, call)
    if body.streams_progress:
        events = explainer.stream_events()
        return EventStreamResponse(
            stream_with_progress(context.progress, explainer.prepare, PROGRESS_FIELDS, events)
        )
    await explainer.prepare()
    if body.stream:
        return EventStreamResponse(explainer.stream_events())
    async for event in explainer.events():
        last = event
    return JSONResponse(last)


class _Explainer:
    """Carries out one request.

    Args:
        inputs: its picture and examples.
        call: the checked arguments.
    """

    def __init__(self, inputs: TaskInputs, call: ExplanationCall) -> None:
        self.inputs, self.call, self.context = inputs, call, inputs.context
        self.prepared: PreparedExplanation
        self.num_passes = 0
        self.usage = Counter[str]()

    async def prepare(self) -> None:
        """Generates the model's own answer if the request has none, and makes the prompt."""
        call = self.call
        if call.answer is None and call.labels is None:
            call = replace(call, answer=await self._generate_answer())
        prepare = partial(call.prepare, [self.inputs.picture])
        self.prepared = await self.context.make_prompt(
            prepare, self.inputs.pictures, lambda made: made.num_tokens
        )
        self.context.record_prompt_metrics(self.prepared.method.prompt.prompt)

    async def _generate_answer(self) -> str:
        """The model's own answer, greedy; it is generated like that of the task's route."""
        inputs, call = self.inputs, self.call
        await self.context.submit_prompt(
            partial(inputs.vlm.task_prompt, call.task, inputs.picture, call.words, inputs.detail),
            {"max_new_tokens": call.max_new_tokens or call.task.max_new_tokens},
            pictures=inputs.pictures,
        )
        (answer,) = await self.context.wait_for_answers()
        self._count(answer.usage)
        return answer.text

    async def stream_events(self) -> AsyncGenerator[bytes]:
        """Yields the formatted events: explanations that get finer."""
        async with aclosing(self.events()) as events:
            async for event in events:
                yield format_event(event)
        yield DONE_EVENT

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Yields explanations, and between them progress if it is streamed; the last is the result.

        Parts are covered, and passes of the fast method made, in a worker; waiting for the engine occupies none.
        """
        context, steps = self.context, self.prepared.method.steps()
        step: list[Request] | TokenEvidence | None = await context.run_in_worker(partial(next, steps, None))
        while step is not None:
            context.check_not_cancelled()
            if isinstance(step, TokenEvidence):
                yield self._to_response(self.prepared.explanation_of(step))
                step = await context.run_in_worker(partial(next, steps, None))
            else:
                handles: list[RequestHandle] = []
                scoring = self._score(step, handles)
                async with aclosing(context.progress.run_and_report(scoring)) as reported:
                    async for progress in reported:
                        yield {**PROGRESS_FIELDS, "progress": progress._asdict()}
                step = await context.run_in_worker(partial(steps.send, handles))

    async def _score(self, requests: Sequence[Request], handles: list[RequestHandle]) -> None:
        """Waits until requests are scored, a few at once, and adds them to `handles` in order.

        An error or the end of the task cancels the others.
        """
        slots = asyncio.Semaphore(MAX_PASSES_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._score_one(request, slots)) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        handles += [task.result() for task in tasks]

    async def _score_one(self, request: Request, slots: asyncio.Semaphore) -> RequestHandle:
        """Waits until a request is scored; tries again while the engine's queue is full."""
        async with slots:
            while True:
                try:
                    handle = await self.context.service.vlm.engine.submit(request)
                    break
                except EngineBusy:
                    await asyncio.sleep(BUSY_SECONDS)
        self._count(handle.usage)
        self.num_passes += 1
        self.context.progress.report(RequestProgress("passes", self.num_passes, self.prepared.num_passes))
        return handle

    def _count(self, usage: Usage) -> None:
        """Adds the tokens of one pass, or of the model's own answer."""
        self.usage.update(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )

    def _to_response(self, explanation: Explanation) -> dict[str, Any]:
        """An explanation as `ExplanationResponse`; its usage has the tokens of all passes so far."""
        prompt, continuations = self.prepared.method.prompt
        num_prompt_tokens = self.usage["prompt_tokens"]
        num_completion_tokens = self.usage["completion_tokens"]
        if (
            num_own_passes := explanation.num_passes - self.num_passes
        ):  # those that the fast method makes itself
            num_prompt_tokens += num_own_passes * len(prompt)
            num_completion_tokens += sum(map(len, continuations))
        usage = completion_usage(num_prompt_tokens, num_completion_tokens, self.usage["cached_tokens"])
        return {
            "object": "image.explanation",
            **explanation.to_dict(),
            "usage": {**usage, "pictures": len(prompt.pictures)},
            **({"notes": list(self.prepared.notes)} if self.prepared.notes else {}),
        }
