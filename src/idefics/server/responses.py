"""`/v1/responses`: OpenAI's newer format of conversations. Each request must contain the whole conversation."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Discriminator, Field, Tag, model_validator

from idefics.messages import ContentPart, Detail, Message
from idefics.server import ignored_field_tables
from idefics.server.chat_messages import (
    MAX_MESSAGES,
    RefusalPart,
    check_refusal_role,
    content_field_type,
    make_message,
    message_pictures,
    message_texts,
    picture_from_url,
)
from idefics.server.ignored_fields import make_field_table
from idefics.server.request_body import JSONBodyRoute
from idefics.server.request_model import RequestModel, type_discriminator, unsupported_error
from idefics.server.response_builder import ResponseBuilder
from idefics.server.response_format import JsonSchema, merge_format_kwargs, response_format_field_type
from idefics.server.response_objects import ResponseObject, ResponseStreamEvent
from idefics.server.routing import RequestContextDep, ServerStateDep, document_responses
from idefics.server.sampling_fields import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_NEW_TOKENS,
    OnlyFalse,
    ReasoningConfig,
    SamplingFields,
    StreamOptions,
)
from idefics.server.sse import EventStreamResponse

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class ResponseTextPart(RequestModel):
    """A text of a message; `output_text` is that of an answer which the client sends back."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["input_text", "output_text"]
    text: str

    def to_content_part(self) -> ContentPart:
        """The part for `idefics.messages.Message`."""
        return self.text


class ResponseImagePart(RequestModel):
    """A part of a message that is a picture."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def to_content_part(self) -> ContentPart:
        """The part for `idefics.messages.Message`: the picture, not fetched yet."""
        return picture_from_url(self.image_url, self.detail, self.max_tiles)


ResponseContentPart = Annotated[
    Annotated[ResponseTextPart, Tag("<input_text>")]
    | Annotated[ResponseTextPart, Tag("<output_text>")]
    | Annotated[ResponseImagePart, Tag("<input_image>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    type_discriminator("a part", "unknown_part", "input_text", "input_image", "output_text", "refusal"),
]


class ResponseInputItem(RequestModel):
    """A message of `input`. Items of other types, such as tool calls, are refused."""

    ignored_fields = make_field_table(
        ignored_field_tables.CACHE_HINT_FIELDS,
        any_value=(
            "id",
            "status",
            "phase",
        ),
    )

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: content_field_type(ResponseContentPart)  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _check_is_message(cls, value: Any) -> Any:
        """Refuses items that are not messages with a hint, before their fields are validated."""
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
        """Refuses parts of type `refusal` in messages of other roles than the assistant."""
        check_refusal_role(self.role, self.content)
        return self

    def to_message(self) -> Message:
        """The message for `Idefics.prompt`, with pictures that are not fetched yet."""
        return make_message(self.role, self.content)


class ResponseJsonSchemaFormat(JsonSchema):
    """The format for JSON that matches a schema."""

    type: Literal["json_schema"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The schema as a keyword argument of `Idefics.submit`."""
        return {"schema": self.schema_}


class ResponseTextConfig(RequestModel):
    """Options for the text of the answer."""

    ignored_fields = make_field_table(
        values_or_hint={
            "verbosity": (
                "ask for a longer or shorter answer in the prompt, or give max_output_tokens",
                "medium",
            )
        },
    )

    format: response_format_field_type(ResponseJsonSchemaFormat) | None = None  # type: ignore[valid-type]


INCLUDE_LOGPROBS = "message.output_text.logprobs"
# All but the first are accepted without effect: they concern tools, or repeat parts of the request.
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
    """A conversation, and options for its next message."""

    ignored_fields = ignored_field_tables.RESPONSE_FIELDS

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
        """The messages for `Idefics.prompt`: `instructions` as a system message, then `input`."""
        instruction_messages = [Message("system", (self.instructions,))] if self.instructions else []
        if isinstance(self.input, str):
            return [*instruction_messages, Message("user", (self.input,))]
        return [*instruction_messages, *(item.to_message() for item in self.input)]

    def generation_kwargs(self) -> dict[str, Any]:
        """The given fields as keyword arguments of `Idefics.submit`.

        Raises:
            APIError: 400, fields contradict each other.
        """
        kwargs = super().generation_kwargs() | {
            "max_new_tokens": self.max_output_tokens or DEFAULT_MAX_NEW_TOKENS
        }
        kwargs |= {
            "logprobs": INCLUDE_LOGPROBS in (self.include or ()),
            "top_logprobs": self.top_logprobs or 0,
        }
        return merge_format_kwargs(kwargs, self.text.format if self.text else None)


@router.post("/v1/responses", responses=document_responses(ResponseObject, event_type=ResponseStreamEvent))
async def respond(request: ResponseRequest, service: ServerStateDep, context: RequestContextDep) -> Response:
    """Generates the next message of a conversation with pictures."""
    service.check_model(request.model)
    messages = request.to_messages()
    context.check_and_count_texts(message_texts(messages))
    await context.submit_prompt(
        partial(service.vlm.prompt, messages),
        request.generation_kwargs(),
        pictures=message_pictures(messages),
    )
    builder = ResponseBuilder(context, request)
    if request.stream:
        return EventStreamResponse(builder.stream_events(), builder.error_event)
    (answer,) = await context.wait_for_answers()
    return JSONResponse(builder.response_object(answer))
