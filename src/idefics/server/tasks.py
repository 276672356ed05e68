"""`/v1/images/tasks/...`: a route per task, for one picture, which is sent as a file or as a URL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from idefics.messages import Answer, Picture, Usage
from idefics.server.request_body import FILE_FIELD, JSONBodyRoute, read_json_or_form
from idefics.server.request_context import RequestContext
from idefics.server.response_fields import (
    CompletionUsage,
    NotesField,
    ResponseFields,
    ResponseFinishReason,
    collect_notes,
    finish_reason,
    sum_usage,
)
from idefics.server.routing import SCHEMA_REF_TEMPLATE, RequestContextDep, document_responses
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event
from idefics.server.task_requests import (
    ClassificationRequest,
    PictureRequest,
    TaskRequest,
    request_class_for,
    shot_texts,
)
from idefics.tasks import TASKS, classify
from idefics.tasks.ranking import neutral_picture
from idefics.tasks.task import Task

if TYPE_CHECKING:
    from idefics.engine.handle import RequestHandle

router = APIRouter(prefix="/v1/images/tasks", tags=["Tasks"], route_class=JSONBodyRoute)


class TaskUsage(CompletionUsage):
    """Number of tokens and pictures of a request."""

    pictures: int


class TaskFinalFields(NotesField):
    """Fields of a complete answer, which are also those of the last event of a stream."""

    finish_reason: ResponseFinishReason
    usage: TaskUsage


class TaskResponse(TaskFinalFields):
    """The text that a task generated about a picture."""

    object: Literal["image.task"]
    task: str
    text: str


class TaskTextEvent(ResponseFields):
    """An event of a stream: what it adds to the text."""

    text: str


class TaskFinalEvent(TaskTextEvent, TaskFinalFields):
    """The last event of a stream; its text is empty."""


class LabelScore(ResponseFields):
    """A label: its probability among all labels, which add up to 1, and its natural-log score."""

    label: str
    probability: float
    logprob: float


class ClassificationResponse(NotesField):
    """The labels, from the most to the least likely."""

    object: Literal["image.task"]
    task: str
    labels: list[LabelScore]
    usage: TaskUsage


def _make_route_handler(task: Task, request_class: type[PictureRequest]) -> Callable[..., Any]:
    """The function that FastAPI calls for requests of a task."""

    async def handle_task(request: Request, context: RequestContextDep) -> Response:
        task_request, file = await read_json_or_form(request, request_class)
        if isinstance(task_request, ClassificationRequest):
            return await _rank_labels(context, task_request, file)
        assert isinstance(task_request, TaskRequest)
        return await _generate_text(context, task, task_request, file)

    return handle_task


async def _generate_text(
    context: RequestContext, task: Task, request: TaskRequest, file: bytes | None
) -> Response:
    """Answers a request of a task that generates text."""
    picture, shots = request.to_picture(file), request.to_shots()
    generation_kwargs = request.sampling_kwargs() | {
        "max_new_tokens": request.max_new_tokens or task.max_new_tokens
    }
    if request.num_beams is not None:
        generation_kwargs["num_beams"] = request.num_beams
    words = request.model_dump().get("words", "").strip()
    context.check_and_count_texts([words, *shot_texts(shots)])
    vlm = context.service.vlm.with_shots(shots)
    await context.submit_prompt(
        partial(vlm.task_prompt, task, picture, words, request.to_image_detail()),
        generation_kwargs,
        pictures=[picture, *(shot.picture for shot in shots)],
        text_prefix=task.answer_start.format(words=words),
    )
    if request.stream:
        return EventStreamResponse(_stream_events(context))
    (answer,) = await context.wait_for_answers()
    response: TaskResponse = {
        "object": "image.task",
        "task": task.name,
        "text": answer.text,
        **_final_fields(answer),
    }
    return JSONResponse(response)


async def _stream_events(context: RequestContext) -> AsyncGenerator[bytes]:
    """Yields the events of a streamed answer: its text, then the fields of the last event."""
    async for _, delta in context.deltas():
        event: TaskTextEvent = {"text": delta.text}
        yield format_event(event)
    final_event: TaskFinalEvent = {"text": "", **_final_fields(context.streams[0].answer)}
    yield format_event(final_event)
    yield DONE_EVENT


async def _rank_labels(
    context: RequestContext, request: ClassificationRequest, file: bytes | None
) -> Response:
    """Answers a classification request: scores the labels, and a neutral picture's if `calibrated`."""
    picture, shots = request.to_picture(file), request.to_shots()
    vlm = context.service.vlm.with_shots(shots)
    labels = classify.check_and_strip_labels(request.labels)
    task, words = classify.task_and_label_text(labels, vlm.processor.prompt_format.kind)
    context.check_and_count_texts([words, *shot_texts(shots)])

    async def score_labels(picture: Picture) -> RequestHandle:
        make_prompt = partial(vlm.label_scoring_prompt, labels, picture, request.to_image_detail())
        handle = await context.score_continuations(
            make_prompt, pictures=[picture, *(shot.picture for shot in shots)]
        )
        context.record_prompt_metrics(handle.request.prompt)
        return handle

    handle = await score_labels(picture)
    prior_scores = (
        (await score_labels(neutral_picture())).continuation_logprobs if request.calibrated else None
    )
    rows = classify.rank_labels(
        labels, handle.continuation_logprobs, prior_scores, length_normalized=request.length_normalized
    )
    response: ClassificationResponse = {
        "object": "image.task",
        "task": task.name,
        "labels": [
            {"label": row.label, "probability": row.probability, "logprob": row.logprob} for row in rows
        ],
        "usage": _task_usage(handle.usage),
    }
    if notes := list(handle.request.prompt.notes):
        response["notes"] = notes
    return JSONResponse(response)


def _final_fields(answer: Answer) -> TaskFinalFields:
    """The fields of a complete answer, as `TaskFinalFields` describes them."""
    return {
        "finish_reason": finish_reason(answer),
        "usage": _task_usage(answer.usage),
        **collect_notes([answer]),
    }


def _task_usage(usage: Usage) -> TaskUsage:
    """The usage with the number of pictures."""
    return {**sum_usage([usage]), "pictures": usage.pictures}


def _document_request_body(request_class: type[PictureRequest]) -> dict[str, Any]:
    """The body of a task's requests for OpenAPI: JSON, or a form with a file."""
    fields = request_class.model_json_schema(ref_template=SCHEMA_REF_TEMPLATE)
    file_schema = {"type": "string", "contentMediaType": "application/octet-stream"}
    form_schema = {**fields, "properties": {**fields["properties"], FILE_FIELD: file_schema}}
    return {
        "required": True,
        "content": {"application/json": {"schema": fields}, "multipart/form-data": {"schema": form_schema}},
    }


for _task in TASKS.values():
    _request_class = request_class_for(_task)
    router.post(
        f"/{_task.name}",
        name=_task.name,
        summary=_task.help,
        responses=document_responses(ClassificationResponse)
        if _task is classify.TASK
        else document_responses(TaskResponse, event_type=TaskTextEvent | TaskFinalEvent),
        openapi_extra={"requestBody": _document_request_body(_request_class)},
    )(_make_route_handler(_task, _request_class))
