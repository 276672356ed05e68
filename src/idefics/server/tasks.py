"""`/v1/images/tasks/...`: a route per task, for one picture, which is sent as a file or as a URL."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, create_model

from idefics.engine.handle import RequestHandle
from idefics.messages import Answer, Detail, ImageDetail, Picture, Shot
from idefics.server import ignored_field_tables
from idefics.server.chat_messages import MAX_PICTURES, MaxTiles, picture_from_url
from idefics.server.errors import APIError
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.response_fields import (
    ClassificationResponse,
    TaskFinalEvent,
    TaskProgressEvent,
    TaskResponse,
    TaskTextEvent,
    TaskUsage,
    collect_notes,
    sum_usage,
)
from idefics.server.routing import (
    FILE_FIELD,
    FILE_SCHEMA,
    SCHEMA_REF_TEMPLATE,
    JSONBodyRoute,
    RequestContextDep,
    ResponseDocs,
    document_responses,
    read_json_or_form,
    select_model,
)
from idefics.server.sampling_fields import SamplingFields, StreamFields, TokenLimit
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event, stream_with_progress
from idefics.tasks import TASKS, classify
from idefics.tasks.ranking import neutral_picture
from idefics.tasks.task import Task

if TYPE_CHECKING:
    from idefics import Idefics

MAX_BEAMS = 16
Label = Annotated[str, Field(max_length=1024)]

router = APIRouter(prefix="/v1/images/tasks", tags=["Tasks"], route_class=JSONBodyRoute)


class FewShotExample(RequestModel):
    """A picture with the answer that the model should give about it."""

    image_url: str
    answer: str
    question: str = ""


class PictureRequest(RequestModel):
    """A picture with its detail and few-shot examples. In a form, the picture may be the file `image`."""

    ignored_fields = ignored_field_tables.TASK_FIELDS

    model: str | None = None
    image_url: str | None = None
    detail: Detail | None = None
    max_tiles: MaxTiles | None = None
    shots: list[FewShotExample] = Field([], max_length=MAX_PICTURES - 1)


class TaskRequest(PictureRequest, SamplingFields, StreamFields):
    """A picture, and options for the text about it; with `logprobs` its answer has the log-probability of the text."""

    logprobs: bool | None = None
    max_new_tokens: TokenLimit | None = None
    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)


class ClassificationRequest(PictureRequest):
    """A picture, and the labels to rank by likelihood."""

    labels: list[Label] = Field(min_length=2, max_length=classify.MAX_LABELS)
    length_normalized: bool = False
    calibrated: bool = False


class TaskInputs:
    """The picture and the few-shot examples of a request, not fetched yet, and the context of the request.

    Args:
        file: the picture, if it is a file of a form.

    Attributes:
        pictures: the picture, then those of the examples.

    Raises:
        APIError: 400, both a file and a URL are given, or neither; 404, there is no such model.
    """

    def __init__(self, context: RequestContext, request: PictureRequest, file: bytes | None) -> None:
        if (file is None) == (request.image_url is None):
            raise APIError(
                400,
                f'give the picture as "image_url" or, in a form, as the file "{FILE_FIELD}": one of the two',
                param="image_url",
            )
        self.context = context
        if request.model is not None:
            select_model(context, request.model)
        self.picture = Picture(file) if file is not None else picture_from_url(request.image_url or "")
        self.detail = ImageDetail(request.detail or "high", request.max_tiles)
        self.shots = [
            Shot(picture_from_url(shot.image_url), shot.answer, shot.question) for shot in request.shots
        ]
        self.pictures = [self.picture, *(shot.picture for shot in self.shots)]
        self.vlm: Idefics = context.vlm.with_shots(self.shots)

    def check_and_count_texts(self, words: str) -> None:
        """Checks and counts the texts of the task and of the examples, as `RequestContext.check_and_count_texts`.

        Args:
            words: the text that the request gives to the task, such as a question.
        """
        shot_texts = [text for shot in self.shots for text in (shot.question, shot.answer)]
        self.context.check_and_count_texts([words, *shot_texts])


async def _generate_text(task: Task, inputs: TaskInputs, request: TaskRequest) -> Response:
    """Answers a request of a task that generates text."""
    context = inputs.context
    words = request.model_dump().get("words", "").strip()
    generation_kwargs = request.sampling_kwargs() | {
        "max_new_tokens": request.max_new_tokens or task.max_new_tokens,
        "num_beams": request.num_beams or 1,
        "logprobs": bool(request.logprobs),
        "start": task.answer_start.format(words=words),
    }
    inputs.check_and_count_texts(words)
    submit = partial(
        context.submit_prompt,
        partial(inputs.vlm.task_prompt, task, inputs.picture, words, inputs.detail),
        generation_kwargs,
        pictures=inputs.pictures,
    )
    if request.streams_progress:
        work = partial(context.submit_and_wait_for_prompt, submit)
        events = _stream_events(context)
        return EventStreamResponse(stream_with_progress(context.progress, work, {"text": ""}, events))
    await submit()
    if request.stream:
        return EventStreamResponse(_stream_events(context))
    (answer,) = await context.wait_for_answers()
    return JSONResponse(
        {"object": "image.task", "task": task.name, "text": answer.text, **_final_fields(answer)}
    )


async def _stream_events(context: RequestContext) -> AsyncGenerator[bytes]:
    """Yields the formatted events of a streamed answer: its text, then one with `TaskFinalFields`."""
    async for _, delta in context.deltas():
        yield format_event({"text": delta.text})
    yield format_event({"text": "", **_final_fields(context.answers[0])})
    yield DONE_EVENT


async def _rank_labels(inputs: TaskInputs, request: ClassificationRequest) -> Response:
    """Answers a classification request: scores the labels for its picture, and if `calibrated` for a plain gray one."""
    labels = classify.check_and_strip_labels(request.labels)
    task, words = classify.task_and_label_text(labels, inputs.vlm.processor.prompt_format.kind)
    inputs.check_and_count_texts(words)
    handles = []
    for picture in [inputs.picture, neutral_picture()] if request.calibrated else [inputs.picture]:
        handle = await inputs.context.score_continuations(
            partial(inputs.vlm.label_scoring_prompt, labels, picture, inputs.detail),
            pictures=[picture, *inputs.pictures[1:]],
        )
        inputs.context.record_prompt_metrics(handle.request.prompt)
        handles.append(handle)
    rows = classify.rank_labels(
        labels,
        *(handle.continuation_logprobs for handle in handles),
        length_normalized=request.length_normalized,
    )
    return JSONResponse(
        {
            "object": "image.task",
            "task": task.name,
            "labels": [row._asdict() for row in rows],
            "usage": _task_usage(handles[0]),
            **collect_notes([handles[0].request.prompt]),
        }
    )


def _final_fields(answer: Answer) -> dict[str, Any]:
    """The values of `TaskFinalFields` for a complete answer."""
    probability = {} if answer.logprobs is None else {"logprob": math.fsum(answer.logprobs)}
    return {
        "finish_reason": answer.finish,
        "usage": _task_usage(answer),
        **probability,
        **collect_notes([answer]),
    }


def _task_usage(answer: Answer | RequestHandle) -> TaskUsage:
    """The usage of a request as `TaskUsage`: the numbers of its tokens and pictures."""
    return {**sum_usage([answer]), "pictures": answer.usage.pictures}


def document_request_body(request_class: type[PictureRequest]) -> dict[str, Any]:
    """The OpenAPI description of the body of a task's requests: JSON, or a form with a file."""
    fields = request_class.model_json_schema(ref_template=SCHEMA_REF_TEMPLATE)
    form_schema = {**fields, "properties": {**fields["properties"], FILE_FIELD: FILE_SCHEMA}}
    return {
        "required": True,
        "content": {"application/json": {"schema": fields}, "multipart/form-data": {"schema": form_schema}},
    }


def _add_route(
    task: Task,
    request_class: type[PictureRequest],
    answer: Callable[[TaskInputs, Any], Awaitable[Response]],
    response_docs: ResponseDocs,
) -> None:
    """Adds the route of a task. `answer` answers a request of the class."""

    async def handle_task(request: Request, context: RequestContextDep) -> Response:
        task_request, file = await read_json_or_form(request, request_class)
        if isinstance(task_request, StreamFields) and task_request.streams_progress:
            context.start_reporting()
        return await answer(TaskInputs(context, task_request, file), task_request)

    router.add_api_route(
        f"/{task.name}",
        handle_task,
        methods=["POST"],
        name=task.name,
        summary=task.help,
        responses=response_docs,
        openapi_extra={"requestBody": document_request_body(request_class)},
    )


TaskWords = Annotated[str, Field(min_length=1, pattern=r"\S")]


def _make_request_class(task: Task) -> type[TaskRequest]:
    """The pydantic model of a task's requests; it has the field `words` if the task takes a text."""
    word_fields: dict[str, Any] = {}
    if task.words_name:
        word_fields["words"] = (TaskWords, task.default_words or ...)
    return create_model(
        f"{task.name.capitalize()}Request", __base__=TaskRequest, __doc__=task.help, **word_fields
    )


for _task in TASKS.values():
    if _task is classify.TASK:
        _docs = document_responses(ClassificationResponse)
        _add_route(_task, ClassificationRequest, _rank_labels, _docs)
    else:
        _docs = document_responses(TaskResponse, TaskTextEvent | TaskProgressEvent | TaskFinalEvent)
        _add_route(_task, _make_request_class(_task), partial(_generate_text, _task), _docs)
