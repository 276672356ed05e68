"""`/v1/images/tasks/...`: one route for each task, for a picture as a file or as an address."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, create_model

from idefics.messages import Answer, Detail, ImageDetail, Picture, Shot, Usage
from idefics.server import ignored_field_tables
from idefics.server.errors import APIError
from idefics.server.ignored_fields import IgnoredFields
from idefics.server.request_body import FILE_PART, read_request
from idefics.server.request_context import RequestContext
from idefics.server.request_model import RequestModel
from idefics.server.response_schemas import ClassificationResponse, TaskResponse
from idefics.server.routing import RequestContextDep, ServerStateDep, document_responses
from idefics.server.schemas import MAX_NEW_TOKENS, MAX_PICTURES, SamplingFields, picture_from_url
from idefics.server.sse import DONE_EVENT, EventStreamResponse, format_event
from idefics.server.usage import collect_notes, sum_usage
from idefics.tasks import TASKS, classify
from idefics.tasks.ranking import neutral_picture
from idefics.tasks.task import Task
from idefics.tasks.write import STORY

if TYPE_CHECKING:
    from idefics import Idefics

MAX_BEAMS = 16
MAX_LABEL_CHARACTERS = 1024  # characters

router = APIRouter(prefix="/v1/images/tasks", tags=["Tasks"])


class FewShotExample(RequestModel):
    """A worked example to follow."""

    image_url: str
    answer: str
    question: str = ""


class PictureRequest(RequestModel):
    """A picture, and how closely it is looked at. A form may bring the picture as a file, `image`, instead."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.TASK_FIELDS

    image_url: str | None = None
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)
    shots: list[FewShotExample] = Field([], max_length=MAX_PICTURES - 1)

    def to_picture(self, file: bytes | None) -> Picture:
        """The one of the two that is given."""
        if (file is None) == (self.image_url is None):
            raise APIError(
                400,
                f'give the picture as "image_url" or, in a form, as the file "{FILE_PART}": one of the two',
                param="image_url",
            )
        return Picture(file) if file is not None else picture_from_url(self.image_url or "")

    def to_image_detail(self) -> ImageDetail:
        """How closely."""
        return ImageDetail(self.detail or "high", self.max_tiles)

    def to_shots(self) -> list[Shot]:
        """The shots, as the rest of the house says them."""
        return [Shot(picture_from_url(shot.image_url), shot.answer, shot.question) for shot in self.shots]


class TaskRequest(PictureRequest, SamplingFields):
    """A picture, and how the words about it are chosen."""

    max_new_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)
    stream: bool | None = None


def shot_texts(shots: Sequence[Shot]) -> Iterator[str]:
    """All that worked examples say."""
    return (text for shot in shots for text in (shot.question, shot.answer))


class ClassificationRequest(PictureRequest):
    """A picture and labels for it."""

    labels: list[Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)]] = Field(
        min_length=2, max_length=classify.MAX_LABELS
    )
    length_normalized: bool = False
    calibrated: bool = False


TaskWords = Annotated[str, Field(min_length=1, pattern=r"\S")]


def request_class_for(task: Task) -> type[PictureRequest]:
    """What a request for a task looks like."""
    if task is classify.TASK:
        return ClassificationRequest
    word_fields: dict[str, Any] = {}
    if task.words_name:
        word_fields["words"] = (TaskWords, STORY if task.name == "write" else ...)
    return create_model(
        f"{task.name.capitalize()}Request", __base__=TaskRequest, __doc__=task.help, **word_fields
    )


def _make_route_handler(task: Task, request_class: type[PictureRequest]) -> Callable[..., Any]:
    """The function of a task's route."""

    async def handle_task(request: Request, service: ServerStateDep, visit: RequestContextDep) -> Response:
        task_request, file = await read_request(request, request_class, service.settings.body_megabytes << 20)
        picture, shots = task_request.to_picture(file), task_request.to_shots()
        vlm = service.vlm.with_shots(shots)
        if isinstance(task_request, ClassificationRequest):
            return await _rank_labels(visit, vlm, task_request, picture)
        assert isinstance(task_request, TaskRequest)
        generation_kwargs = task_request.generation_kwargs() | {
            "max_new_tokens": task_request.max_new_tokens or task.max_new_tokens
        }
        if task_request.num_beams is not None:
            generation_kwargs["num_beams"] = task_request.num_beams
        words = task_request.model_dump().get("words", "").strip()
        text_prefix = words if task.name == "complete" else ""
        visit.check_texts([words, *shot_texts(shots)])
        make_prompt = partial(vlm.task_prompt, task, picture, words, task_request.to_image_detail())
        await visit.submit_prompt(
            make_prompt,
            generation_kwargs,
            pictures=[picture, *(shot.picture for shot in shots)],
            text_prefix=text_prefix,
        )
        if task_request.stream:
            return EventStreamResponse(_stream_events(visit))
        (answer,) = await visit.answers()
        return JSONResponse(
            {"object": "image.task", "task": task.name, "text": answer.text, **_final_fields(answer)}
        )

    return handle_task


async def _stream_events(context: RequestContext) -> AsyncGenerator[bytes]:
    async for _, delta in context.deltas():
        yield format_event({"text": delta.text})
    yield format_event({"text": "", **_final_fields(context.streams[0].answer)})
    yield DONE_EVENT


async def _rank_labels(
    context: RequestContext, vlm: Idefics, request: ClassificationRequest, picture: Picture
) -> Response:
    labels = classify.check_labels(request.labels)
    task, words = classify.task_for_labels(labels, vlm.processor.prompt_format.kind)
    context.check_texts([words, *shot_texts(vlm.shots)])
    make_scoring_prompt = partial(
        vlm.label_scoring_prompt, task, words, labels, image_detail=request.to_image_detail()
    )
    shot_pictures = [shot.picture for shot in vlm.shots]
    handle = await context.score_continuations(
        partial(make_scoring_prompt, picture), pictures=[picture, *shot_pictures]
    )
    prior_scores: list[list[float]] | None = None
    if request.calibrated:
        prior_scores = (
            await context.score_continuations(
                partial(make_scoring_prompt, neutral_picture()), pictures=[neutral_picture(), *shot_pictures]
            )
        ).continuation_logprobs
    rows = classify.rank_labels(
        labels, handle.continuation_logprobs, prior_scores, length_normalized=request.length_normalized
    )
    labels_json = [
        {"label": row.label, "probability": row.probability, "logprob": row.logprob} for row in rows
    ]
    notes = list(handle.request.prompt.notes)
    final_fields = {"usage": _format_usage(handle.usage), **({"notes": notes} if notes else {})}
    return JSONResponse({"object": "image.task", "task": task.name, "labels": labels_json, **final_fields})


def _final_fields(answer: Answer) -> dict[str, Any]:
    return {"finish_reason": answer.finish, "usage": _format_usage(answer.usage), **collect_notes([answer])}


def _format_usage(usage: Usage) -> dict[str, Any]:
    return {**sum_usage(usage), "pictures": usage.pictures}


def _inline_references(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with the parts that it refers to in place of the references."""
    if isinstance(schema, list):
        return [_inline_references(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline_references(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline_references(item, definitions) for name, item in schema.items()}


def _document_request_body(request_class: type[PictureRequest]) -> dict[str, Any]:
    """A request's body for the API's description."""
    fields = request_class.model_json_schema()
    fields = _inline_references(fields, fields.pop("$defs", {}))
    file_schema = {"type": "string", "contentMediaType": "application/octet-stream"}
    form_schema = {**fields, "properties": {**fields["properties"], FILE_PART: file_schema}}
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
        else document_responses(TaskResponse, can_stream=True),
        openapi_extra={"requestBody": _document_request_body(_request_class)},
    )(_make_route_handler(_task, _request_class))
