"""`/v1/images/tasks/explain`: which parts of a picture carried the words of an answer, or labels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from idefics.engine.handle import RequestHandle
from idefics.engine.request import Request
from idefics.errors import EngineBusy
from idefics.explain.explanation import Explanation
from idefics.explain.occlusion import Occlusion, TokenEvidence
from idefics.server.request_body import JSONBodyRoute, read_json_or_form
from idefics.server.request_context import RequestContext
from idefics.server.response_fields import NotesField, ResponseFields
from idefics.server.routing import RequestContextDep, document_responses
from idefics.server.sampling_fields import TokenLimit
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event
from idefics.server.tasks import (
    MAX_LABEL_CHARACTERS,
    PictureRequest,
    TaskInputs,
    document_request_body,
)
from idefics.tasks import classify
from idefics.tasks.explanation_call import MAX_GRID, MIN_GRID, ExplanationCall, PreparedExplanation

if TYPE_CHECKING:
    from idefics.tasks.task import Task

MAX_PASSES_AT_ONCE = 4  # of one explanation, so that answers of other clients are computed in between
BUSY_SECONDS = 0.05  # until a pass is submitted again that found the engine's queue full

router = APIRouter(prefix="/v1/images/tasks", tags=["Tasks"], route_class=JSONBodyRoute)


class ExplanationRequest(PictureRequest):
    """A picture, and a question or labels; without an answer the model's own is explained."""

    words: str | None = None
    answer: str | None = None
    task: str = "ask"
    labels: list[Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]] | None = Field(
        None, min_length=2, max_length=classify.MAX_LABELS
    )
    grid: int = Field(16, ge=MIN_GRID, le=MAX_GRID)
    max_new_tokens: TokenLimit | None = None
    stream: bool | None = None


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


@router.post(
    "/explain",
    name="explain",
    summary="Say which parts of a picture carried the words of an answer, or labels.",
    responses=document_responses(ExplanationResponse, ExplanationResponse),
    openapi_extra={"requestBody": document_request_body(ExplanationRequest)},
)
async def handle_explanation(request: HTTPRequest, context: RequestContextDep) -> Response:
    """Answers with the explanation, or with a stream of explanations that get finer."""
    body, file = await read_json_or_form(request, ExplanationRequest)
    inputs = TaskInputs(context, body, file)
    inputs.check_and_count_texts(" ".join([body.words or "", body.answer or "", *(body.labels or ())]))
    call = _make_call(inputs, body, body.answer)
    if call.answer is None and call.labels is None:
        call = _make_call(inputs, body, await _generate_answer(inputs, call.task, call.words, body))
    prepared = await context.prepare_passes(
        partial(call.prepare, [inputs.picture]), pictures=[inputs.picture, *inputs.shot_pictures]
    )
    if body.stream:
        return EventStreamResponse(_stream_events(context, prepared))
    async for explanation in _explanations(context, prepared):
        last = explanation
    return JSONResponse(_to_response(prepared, last))


def _make_call(inputs: TaskInputs, body: ExplanationRequest, answer: str | None) -> ExplanationCall:
    """The checked arguments of the explanation."""
    return ExplanationCall.create(
        inputs.vlm.loaded_model,
        inputs.shots,
        body.words,
        answer,
        method="occlusion",
        grid=body.grid,
        task=body.task,
        labels=body.labels,
        image_detail=inputs.detail,
        max_new_tokens=body.max_new_tokens,
        timeout=None,
    )


async def _generate_answer(inputs: TaskInputs, task: Task, words: str, body: ExplanationRequest) -> str:
    """The model's own answer, greedy; it is generated like that of the task's route."""
    await inputs.context.submit_prompt(
        partial(inputs.vlm.task_prompt, task, inputs.picture, words, inputs.detail),
        {"max_new_tokens": body.max_new_tokens or task.max_new_tokens},
        pictures=[inputs.picture, *inputs.shot_pictures],
    )
    (answer,) = await inputs.context.wait_for_answers()
    return answer.text


async def _stream_events(context: RequestContext, prepared: PreparedExplanation) -> AsyncGenerator[bytes]:
    """Yields the formatted events: explanations that get finer."""
    async with aclosing(_explanations(context, prepared)) as explanations:
        async for explanation in explanations:
            yield format_event(_to_response(prepared, explanation))
    yield DONE_EVENT


def _to_response(prepared: PreparedExplanation, explanation: Explanation) -> dict[str, Any]:
    """An explanation as `ExplanationResponse`."""
    notes = {"notes": list(prepared.notes)} if prepared.notes else {}
    return {"object": "image.explanation", **explanation.to_dict(), **notes}


async def _explanations(
    context: RequestContext, prepared: PreparedExplanation
) -> AsyncGenerator[Explanation]:
    """Yields explanations as their passes are done. Parts are covered in a worker; waiting occupies none."""
    assert isinstance(prepared.method, Occlusion)
    steps = prepared.method.steps()
    step: list[Request] | TokenEvidence | None = await context.run_in_worker(partial(next, steps, None))
    while step is not None:
        context.check_not_cancelled()
        if isinstance(step, TokenEvidence):
            yield prepared.explanation_of(step)
            step = await context.run_in_worker(partial(next, steps, None))
        else:
            step = await context.run_in_worker(partial(steps.send, await _score(context, step)))


async def _score(context: RequestContext, requests: Sequence[Request]) -> list[RequestHandle]:
    """Waits until requests are scored, a few at once. An error or the end of the task cancels the others."""
    slots = asyncio.Semaphore(MAX_PASSES_AT_ONCE)

    async def score(request: Request) -> RequestHandle:
        async with slots:
            while True:
                try:
                    return await context.service.vlm.engine.submit(request)
                except EngineBusy:
                    await asyncio.sleep(BUSY_SECONDS)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(request)) for request in requests]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
