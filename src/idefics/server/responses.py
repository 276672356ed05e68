"""`/v1/responses`: the same conversations in OpenAI's newer words. Nothing is kept, so each request says everything."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag, model_validator

from idefics.messages import ContentPart, Detail, Message
from idefics.server import ignored_field_tables
from idefics.server.ignored_fields import IgnoredFields
from idefics.server.request_body import JSONBodyRoute
from idefics.server.request_model import RequestModel, type_discriminator, unsupported_error
from idefics.server.response_builder import ResponseBuilder
from idefics.server.response_format import JsonSchema, merge_format_kwargs, response_format_field
from idefics.server.response_schemas import ResponseObject
from idefics.server.routing import RequestContextDep, ServerStateDep, document_responses
from idefics.server.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_MESSAGES,
    MAX_NEW_TOKENS,
    OnlyFalse,
    ReasoningConfig,
    RefusalPart,
    SamplingFields,
    StreamOptions,
    check_refusal_role,
    content_field,
    message_pictures,
    message_texts,
    picture_from_url,
)
from idefics.server.sse import EventStreamResponse

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class ResponseTextPart(RequestModel):
    """Words; those of an answer come back as they were given out."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["input_text", "output_text"]
    text: str

    def to_content_part(self) -> ContentPart:
        """As the rest of the house says it."""
        return self.text


class ResponseImagePart(RequestModel):
    """A picture among them."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def to_content_part(self) -> ContentPart:
        """As the rest of the house says it."""
        return picture_from_url(self.image_url, self.detail, self.max_tiles)


ResponseContentPart = Annotated[
    Annotated[ResponseTextPart, Tag("<input_text>")]
    | Annotated[ResponseTextPart, Tag("<output_text>")]
    | Annotated[ResponseImagePart, Tag("<input_image>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    type_discriminator("a part", "unknown_part", "input_text", "input_image", "output_text", "refusal"),
]


class ResponseInputItem(RequestModel):
    """One turn of a conversation."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.INPUT_ITEM_FIELDS

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: content_field(ResponseContentPart)  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _check_is_message(cls, value: Any) -> Any:
        if isinstance(value, dict):
            item_type = value.get("type") or (
                ignored_field_tables.ITEM_REFERENCE if {*value} <= {"id", "type"} else "message"
            )
            if item_type != "message":
                raise unsupported_error(
                    str(item_type)[:100],
                    ignored_field_tables.HINT_BY_UNSUPPORTED_ITEM.get(
                        str(item_type), ignored_field_tables.UNKNOWN_ITEM_HINT
                    ),
                )
        return value

    @model_validator(mode="after")
    def _check_refusal_role(self) -> Self:
        check_refusal_role(self.role, self.content)
        return self

    def to_message(self) -> Message:
        """As the rest of the house says it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if isinstance(content, str):
            return Message(role, (content,))
        return Message(role, tuple(part.to_content_part() for part in content))


class ResponseJsonSchemaFormat(JsonSchema):
    """JSON of one kind."""

    type: Literal["json_schema"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call: the JSON schema of the answer."""
        return {"schema": self.schema_}


class ResponseTextConfig(RequestModel):
    """What the answer looks like."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.TEXT_CONFIG_FIELDS

    format: response_format_field(ResponseJsonSchemaFormat) | None = None  # type: ignore[valid-type]


INCLUDE_LOGPROBS = "message.output_text.logprobs"
# What an answer may tell more of. All but the first are of tools, or of what was sent: an answer never has it.
IncludeOption = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponseRequest(SamplingFields):
    """A conversation, and how it is to be continued."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.RESPONSE_FIELDS

    model: str
    input: Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[ResponseInputItem], Tag("<items>"), Field(min_length=1, max_length=MAX_MESSAGES)],
        Discriminator(lambda value: "<words>" if isinstance(value, str) else "<items>"),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    text: ResponseTextConfig | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[IncludeOption] | None = Field(None, max_length=16)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = Field(None, max_length=512)
    store: OnlyFalse | None = None
    truncation: Literal["disabled"] | None = None
    reasoning: ReasoningConfig | None = None

    def to_messages(self) -> list[Message]:
        """The conversation."""
        instruction_messages = [Message("system", (self.instructions,))] if self.instructions else []
        if isinstance(self.input, str):
            return [*instruction_messages, Message("user", (self.input,))]
        return [*instruction_messages, *(item.to_message() for item in self.input)]

    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call."""
        kwargs = super().generation_kwargs() | {
            "max_new_tokens": self.max_output_tokens or DEFAULT_MAX_NEW_TOKENS
        }
        kwargs |= {
            "logprobs": INCLUDE_LOGPROBS in (self.include or ()),
            "top_logprobs": self.top_logprobs or 0,
        }
        return merge_format_kwargs(kwargs, self.text.format if self.text else None)


@router.post("/v1/responses", responses=document_responses(ResponseObject, can_stream=True))
async def respond(request: ResponseRequest, service: ServerStateDep, context: RequestContextDep) -> Response:
    """The next answer of a conversation of words and pictures."""
    service.check_model(request.model)
    messages = request.to_messages()
    context.check_texts(message_texts(messages))
    make_prompt = partial(service.vlm.prompt, messages)
    await context.submit_prompt(make_prompt, request.generation_kwargs(), pictures=message_pictures(messages))
    builder = ResponseBuilder(context, request)
    if request.stream:
        return EventStreamResponse(builder.stream_events(), builder.error_event)
    (answer,) = await context.answers()
    return JSONResponse(builder.response_object(answer))
