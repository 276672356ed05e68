"""`/v1/images/tasks/...`: one route for each task, for a picture as a file or as an address."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, create_model

from idefics.messages import Answer, Detail, ImageDetail, Picture, Shot, Usage
from idefics.server import neutral_fields
from idefics.server.answers import RankingShape, TaskShape
from idefics.server.bodies import FILE, read
from idefics.server.events import DONE, Events, event
from idefics.server.faults import Fault
from idefics.server.fields import MOST_PICTURES, MOST_TOKENS, Choosing, picture_at
from idefics.server.neutral import Unused
from idefics.server.request_object import Fields
from idefics.server.usage import notes_of, usage_of
from idefics.server.visit import Visit
from idefics.server.wiring import Serving, Visiting, described
from idefics.tasks import TASKS, classify
from idefics.tasks.ranking import neutral
from idefics.tasks.record import Task
from idefics.tasks.write import STORY

if TYPE_CHECKING:
    from idefics import Idefics

MOST_BEAMS = 16
LONGEST_LABEL = 1024  # characters

router = APIRouter(prefix="/v1/images/tasks", tags=["Tasks"])


class ShotField(Fields):
    """A worked example to follow."""

    image_url: str
    answer: str
    question: str = ""


class Shown(Fields):
    """A picture, and how closely it is looked at. A form may bring the picture as a file, `image`, instead."""

    unused: ClassVar[Unused] = neutral_fields.TASK

    image_url: str | None = None
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)
    shots: list[ShotField] = Field([], max_length=MOST_PICTURES - 1)

    def picture(self, file: bytes | None) -> Picture:
        """The one of the two that is given."""
        if (file is None) == (self.image_url is None):
            raise Fault(
                400,
                f'give the picture as "image_url" or, in a form, as the file "{FILE}": one of the two',
                param="image_url",
            )
        return Picture(file) if file is not None else picture_at(self.image_url or "")

    def look(self) -> ImageDetail:
        """How closely."""
        return ImageDetail(self.detail or "high", self.max_tiles)

    def examples(self) -> list[Shot]:
        """The shots, as the rest of the house says them."""
        return [Shot(picture_at(shot.image_url), shot.answer, shot.question) for shot in self.shots]


class TaskRequest(Shown, Choosing):
    """A picture, and how the words about it are chosen."""

    max_new_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    num_beams: int | None = Field(None, ge=1, le=MOST_BEAMS)
    stream: bool | None = None


def shot_texts(shots: Sequence[Shot]) -> Iterator[str]:
    """All that worked examples say."""
    return (text for shot in shots for text in (shot.question, shot.answer))


class ClassifyRequest(Shown):
    """A picture and labels for it."""

    labels: list[Annotated[str, Field(max_length=LONGEST_LABEL)]] = Field(
        min_length=2, max_length=classify.MOST_LABELS
    )
    length_normalized: bool = False
    calibrated: bool = False


Words = Annotated[str, Field(min_length=1, pattern=r"\S")]


def kind_of(task: Task) -> type[Shown]:
    """What a request for a task looks like."""
    if task is classify.TASK:
        return ClassifyRequest
    words: dict[str, Any] = {}
    if task.words:
        words["words"] = (Words, STORY if task.name == "write" else ...)
    return create_model(f"{task.name.capitalize()}Request", __base__=TaskRequest, __doc__=task.help, **words)


def _answering(task: Task, kind: type[Shown]) -> Callable[..., Any]:
    """The function of a task's route."""

    async def answer(request: Request, service: Serving, visit: Visiting) -> Response:
        asked, file = await read(request, kind, service.settings.body_megabytes << 20)
        picture, shots = asked.picture(file), asked.examples()
        vlm = service.vlm.with_shots(shots)
        if isinstance(asked, ClassifyRequest):
            return await _ranking(visit, vlm, asked, picture)
        assert isinstance(asked, TaskRequest)
        wishes = asked.wishes() | {"max_new_tokens": asked.max_new_tokens or task.max_new_tokens}
        if asked.num_beams is not None:
            wishes["num_beams"] = asked.num_beams
        words = asked.model_dump().get("words", "").strip()
        start = words if task.name == "complete" else ""
        visit.check_texts([words, *shot_texts(shots)])
        make = partial(vlm.task_prompt, task, picture, words, asked.look())
        await visit.ask(make, wishes, pictures=[picture, *(shot.picture for shot in shots)], start=start)
        if asked.stream:
            return Events(_pieces(visit))
        (said,) = await visit.answers()
        return JSONResponse({"object": "image.task", "task": task.name, "text": said.text, **_end(said)})

    return answer


async def _pieces(visit: Visit) -> AsyncGenerator[bytes]:
    async for _, delta in visit.deltas():
        yield event({"text": delta.text})
    yield event({"text": "", **_end(visit.streams[0].answer)})
    yield DONE


async def _ranking(visit: Visit, vlm: Idefics, asked: ClassifyRequest, picture: Picture) -> Response:
    labels = classify.checked(asked.labels)
    task, words = classify.worded(labels, vlm.processor.style.kind)
    visit.check_texts([words, *shot_texts(vlm.shots)])
    ask = partial(vlm.label_endings, task, words, labels, look=asked.look())
    shots = [shot.picture for shot in vlm.shots]
    handle = await visit.scores(partial(ask, picture), pictures=[picture, *shots])
    prior: list[list[float]] | None = None
    if asked.calibrated:
        prior = (await visit.scores(partial(ask, neutral()), pictures=[neutral(), *shots])).scores
    rows = classify.ranked(labels, handle.scores, prior, length_normalized=asked.length_normalized)
    found = [{"label": row.label, "probability": row.probability, "logprob": row.logprob} for row in rows]
    notes = list(handle.request.prompt.notes)
    end = {"usage": _usage(handle.usage), **({"notes": notes} if notes else {})}
    return JSONResponse({"object": "image.task", "task": task.name, "labels": found, **end})


def _end(answer: Answer) -> dict[str, Any]:
    return {"finish_reason": answer.finish, "usage": _usage(answer.usage), **notes_of([answer])}


def _usage(usage: Usage) -> dict[str, Any]:
    return {**usage_of(usage), "pictures": usage.pictures}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema with the parts that it refers to in place of the references."""
    if isinstance(schema, list):
        return [_inlined(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {name: _inlined(one, parts) for name, one in schema.items()}


def _described(kind: type[Shown]) -> dict[str, Any]:
    """A request's body for the API's description."""
    fields = kind.model_json_schema()
    fields = _inlined(fields, fields.pop("$defs", {}))
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {**fields, "properties": {**fields["properties"], FILE: file}}
    return {
        "required": True,
        "content": {"application/json": {"schema": fields}, "multipart/form-data": {"schema": form}},
    }


for _task in TASKS.values():
    _kind = kind_of(_task)
    router.post(
        f"/{_task.name}",
        name=_task.name,
        summary=_task.help,
        responses=described(RankingShape) if _task is classify.TASK else described(TaskShape, streams=True),
        openapi_extra={"requestBody": _described(_kind)},
    )(_answering(_task, _kind))
