"""`/v1/responses`: OpenAI's newer format of conversations. Each request must contain the whole conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field, field_validator, model_validator

from idefics.messages import ContentPart, Detail, Message
from idefics.server import ignored_field_tables
from idefics.server.chat_messages import (
    MAX_MESSAGES,
    ConversationMessage,
    MaxTiles,
    RefusalPart,
    TextPart,
    content_field_type,
    picture_from_url,
    submit_conversation,
)
from idefics.server.request_model import (
    RequestModel,
    make_field_table,
    text_or_list,
    union_by_type,
    unsupported_error,
)
from idefics.server.response_builder import ResponseBuilder, ResponseObject, ResponseStreamEvent
from idefics.server.response_format import JsonSchema, ResponseFormat, response_format_field_type
from idefics.server.routing import JSONBodyRoute, RequestContextDep, document_responses, select_model
from idefics.server.sampling_fields import ConversationRequest, StreamOptions, TokenLimit

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)


class ResponseTextPart(TextPart):
    """A part of a message that is text; `output_text` is that of an earlier answer, which the client sends back."""

    type: Literal["input_text", "output_text"]


class ResponseImagePart(RequestModel):
    """A part of a message that is a picture."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None
    max_tiles: MaxTiles | None = None

    def to_content_part(self) -> ContentPart:
        """The picture, not fetched yet, as a part of an `idefics.Message`."""
        return picture_from_url(self.image_url, self.detail, self.max_tiles)


ResponseContentPart = union_by_type(
    'a part has a "type", which is "input_text", "input_image", "output_text" or "refusal"',
    input_text=ResponseTextPart,
    output_text=ResponseTextPart,
    input_image=ResponseImagePart,
    refusal=RefusalPart,
)


class ResponseInputItem(ConversationMessage):
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
    content: content_field_type(ResponseContentPart)  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _check_is_message(cls, value: Any) -> Any:
        """Raises an error with a hint for items of `input` that are not messages, before their fields are validated."""
        if isinstance(value, dict):
            item_type = value.get("type") or ("item_reference" if {*value} <= {"id", "type"} else "message")
            if item_type != "message":
                raise unsupported_error(
                    str(item_type)[:100],
                    ignored_field_tables.HINT_BY_UNSUPPORTED_ITEM.get(
                        str(item_type), ignored_field_tables.UNKNOWN_ITEM_HINT
                    ),
                )
        return value


class ResponseJsonSchemaFormat(JsonSchema, ResponseFormat):
    """The format for JSON that matches a schema."""

    type: Literal["json_schema"]

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """The schema as the keyword argument `schema` of `Idefics.submit`."""
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


InputItems = Annotated[list[ResponseInputItem], Field(min_length=1, max_length=MAX_MESSAGES)]


class ResponseRequest(ConversationRequest):
    """A conversation, and options for its next message."""

    ignored_fields = ignored_field_tables.RESPONSE_FIELDS

    input: text_or_list(str, InputItems)  # type: ignore[valid-type]
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = None
    text: ResponseTextConfig | None = None
    include: list[IncludeOption] | None = Field(None, max_length=16)
    truncation: Literal["disabled"] | None = None

    @field_validator("stream_options")
    @classmethod
    def _refuse_progress(cls, options: StreamOptions | None) -> StreamOptions | None:
        """Raises an error for `include_progress`, for which the events of this route have no form."""
        if options is not None and options.include_progress:
            raise ValueError(
                "include_progress is not supported here: use /v1/chat/completions, or leave it out"
            )
        return options

    def to_messages(self) -> list[Message]:
        """The conversation as `idefics.Message`s: `instructions` as a system message, then `input`."""
        instruction_messages = [Message("system", (self.instructions,))] if self.instructions else []
        if isinstance(self.input, str):
            return [*instruction_messages, Message("user", (self.input,))]
        return [*instruction_messages, *(item.to_message() for item in self.input)]

    def generation_kwargs(self) -> dict[str, Any]:
        """The given fields as keyword arguments of `Idefics.submit`.

        Raises:
            APIError: 400, fields contradict each other.
        """
        wants_logprobs = INCLUDE_LOGPROBS in (self.include or ())
        text_format = self.text.format if self.text else None
        return self.conversation_kwargs(self.max_output_tokens, wants_logprobs, text_format)


@router.post("/v1/responses", responses=document_responses(ResponseObject, ResponseStreamEvent))
async def respond(request: ResponseRequest, context: RequestContextDep) -> Response:
    """Generates the next message of a conversation with pictures."""
    select_model(context, request.model)
    await submit_conversation(context, request.to_messages(), request.generation_kwargs())
    return await ResponseBuilder(context, request).build_response()
