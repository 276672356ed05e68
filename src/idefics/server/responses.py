"""`/v1/responses`: the same conversations in OpenAI's newer words. Nothing is kept, so each request says everything."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag, model_validator

from idefics.messages import Detail, Message, Part
from idefics.server import neutral_fields
from idefics.server.answers import ResponseShape
from idefics.server.bodies import JSONRoute
from idefics.server.events import Events
from idefics.server.fields import (
    MOST_MESSAGES,
    MOST_TOKENS,
    NEW_TOKENS,
    Choosing,
    ReasoningField,
    RefusalPart,
    StreamOptions,
    Unkept,
    content_of,
    only_of_assistant,
    picture_at,
    pictures_of,
    texts_of,
)
from idefics.server.neutral import Unused
from idefics.server.output_format import JsonSchema, one_format, with_format
from idefics.server.request_object import Fields, by_type, unsupported
from idefics.server.response_object import Reply
from idefics.server.wiring import Serving, Visiting, described

router = APIRouter(tags=["OpenAI"], route_class=JSONRoute)


class TextPart(Fields):
    """Words; those of an answer come back as they were given out."""

    unused: ClassVar[Unused] = neutral_fields.PART

    type: Literal["input_text", "output_text"]
    text: str

    def part(self) -> Part:
        """As the rest of the house says it."""
        return self.text


class ImagePart(Fields):
    """A picture among them."""

    unused: ClassVar[Unused] = neutral_fields.PART

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def part(self) -> Part:
        """As the rest of the house says it."""
        return picture_at(self.image_url, self.detail, self.max_tiles)


PartField = Annotated[
    Annotated[TextPart, Tag("<input_text>")]
    | Annotated[TextPart, Tag("<output_text>")]
    | Annotated[ImagePart, Tag("<input_image>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    by_type("a part", "unknown_part", "input_text", "input_image", "output_text", "refusal"),
]


class ItemField(Fields):
    """One turn of a conversation."""

    unused: ClassVar[Unused] = neutral_fields.ITEM

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: content_of(PartField)  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _is_message(cls, said: Any) -> Any:
        if isinstance(said, dict):
            kind = said.get("type") or (
                neutral_fields.ITEM_REFERENCE if {*said} <= {"id", "type"} else "message"
            )
            if kind != "message":
                raise unsupported(
                    str(kind)[:100], neutral_fields.UNSUPPORTED_ITEMS.get(str(kind), neutral_fields.NO_ITEM)
                )
        return said

    @model_validator(mode="after")
    def _refused_by_assistant(self) -> Self:
        only_of_assistant(self.role, self.content)
        return self

    def message(self) -> Message:
        """As the rest of the house says it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if isinstance(content, str):
            return Message(role, (content,))
        return Message(role, tuple(part.part() for part in content))


class SchemaFormat(JsonSchema):
    """JSON of one kind."""

    type: Literal["json_schema"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: the JSON schema of the answer."""
        return {"schema": self.schema_}


class TextField(Fields):
    """What the answer looks like."""

    unused: ClassVar[Unused] = neutral_fields.TEXT_FIELD

    format: one_format(SchemaFormat) | None = None  # type: ignore[valid-type]


LOGPROBS = "message.output_text.logprobs"
# What an answer may tell more of. All but the first are of tools, or of what was sent: an answer never has it.
Included = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponseRequest(Choosing):
    """A conversation, and how it is to be continued."""

    unused: ClassVar[Unused] = neutral_fields.RESPONSE

    model: str
    input: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[ItemField], Tag("<items>"), Field(min_length=1, max_length=MOST_MESSAGES)],
        Discriminator(lambda value: "<words>" if isinstance(value, str) else "<items>"),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    text: TextField | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Included] | None = Field(None, max_length=16)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = Field(None, max_length=512)
    store: Unkept | None = None
    truncation: Literal["disabled"] | None = None
    reasoning: ReasoningField | None = None

    def messages(self) -> list[Message]:
        """The conversation."""
        start = [Message("system", (self.instructions,))] if self.instructions else []
        if isinstance(self.input, str):
            return [*start, Message("user", (self.input,))]
        return [*start, *(item.message() for item in self.input)]

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call."""
        wishes = super().wishes() | {"max_new_tokens": self.max_output_tokens or NEW_TOKENS}
        wishes |= {"logprobs": LOGPROBS in (self.include or ()), "top_logprobs": self.top_logprobs or 0}
        return with_format(wishes, self.text.format if self.text else None)


@router.post("/v1/responses", responses=described(ResponseShape, streams=True))
async def respond(asked: ResponseRequest, service: Serving, visit: Visiting) -> Response:
    """The next answer of a conversation of words and pictures."""
    service.check_model(asked.model)
    messages = asked.messages()
    visit.check_texts(texts_of(messages))
    make = partial(service.vlm.prompt, messages)
    await visit.ask(make, asked.wishes(), pictures=pictures_of(messages))
    reply = Reply(visit, asked)
    if asked.stream:
        return Events(reply.events(), reply.error)
    (answer,) = await visit.answers()
    return JSONResponse(reply.response(answer))
