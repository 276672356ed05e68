"""What requests are made of, whatever they are for: how words are chosen, pictures in a conversation.

A field that is not here is refused with its name. Everything has a limit, so that no request is much work to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from idefics.messages import Detail, Message, Picture
from idefics.processing.fetch import is_data_uri, is_url, normalize_url
from idefics.server import ignored_field_tables
from idefics.server.errors import APIError
from idefics.server.ignored_fields import IgnoredFields
from idefics.server.request_model import RequestModel, type_discriminator, unsupported_error
from idefics.server.response_format import MAX_CONSTRAINT_BYTES
from idefics.tasks.classify import MAX_LABELS

MAX_CHOICES = 16
MAX_PICTURES = 16
MAX_STOP_STRINGS = 4
MAX_MESSAGES = 512
MAX_CONTENT_PARTS = 64
MAX_LOGIT_BIASES = 300
MAX_BANNED_STRINGS = 128
MAX_NEW_TOKENS = 1_000_000  # of an answer; a model's own limit is lower
DEFAULT_MAX_NEW_TOKENS = 256  # where a request does not say it
MAX_URL_CHARACTERS = 2048  # characters
MAX_DATA_URI_HEADER_CHARACTERS = 256  # of a data URI, before its comma


def _check_choices_size(choices: list[str]) -> list[str]:
    if (size := sum(len(choice.encode(errors="surrogatepass")) for choice in choices)) > MAX_CONSTRAINT_BYTES:
        raise ValueError(
            f"the choices have {size:,} bytes together; at most {MAX_CONSTRAINT_BYTES:,} are read"
        )
    return choices


TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]

LogitBiasValue = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[TokenId, LogitBiasValue],
    Field(max_length=MAX_LOGIT_BIASES, json_schema_extra={"additionalProperties": False}),
]

ShortText = Annotated[str, Field(min_length=1, max_length=256)]
ChoiceTexts = Annotated[list[ShortText], AfterValidator(_check_choices_size)]
StopTexts = Annotated[list[ShortText], Field(max_length=MAX_STOP_STRINGS)]


def content_tag(value: Any) -> str:
    """The tag of a content: a text alone, or a list of parts."""
    return "<words>" if isinstance(value, str) else "<parts>"


StopField = Annotated[
    Annotated[ShortText, Tag("<words>")] | Annotated[StopTexts, Tag("<parts>")], Discriminator(content_tag)
]


class SamplingFields(RequestModel):
    """How words are chosen: what all routes call the same."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: StopField | None = None
    regex: str | None = Field(None, min_length=1, max_length=4096)
    choices: ChoiceTexts | None = Field(None, min_length=1, max_length=MAX_LABELS)
    banned: list[ShortText] | None = Field(None, max_length=MAX_BANNED_STRINGS)
    skip_special_tokens: bool | None = None

    def generation_kwargs(self) -> dict[str, Any]:
        """The keywords of a call, as far as they are said."""
        kwargs = {
            name: value for name in SamplingFields.model_fields if (value := getattr(self, name)) is not None
        }
        if self.logit_bias is not None:
            kwargs["logit_bias"] = {int(id): value for id, value in self.logit_bias.items()}
        return kwargs


def _require_false(value: bool) -> bool:
    if value:
        raise ValueError("nothing that is asked here is kept: leave it out, or say false")
    return value


OnlyFalse = Annotated[bool, AfterValidator(_require_false)]


class StreamOptions(RequestModel):
    """What a stream tells beside the answer."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.STREAM_OPTIONS_FIELDS

    include_usage: bool | None = None


class OpenAIRequest(SamplingFields):
    """What OpenAI's older two routes share."""

    model: str
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if options is not None and options.include_usage and not info.data.get("stream"):
            raise ValueError(
                'include_usage asks for the last event of a stream, and stream is not true: say "stream": true, or '
                "leave it out (an answer that is not streamed always has its usage)"
            )
        return options

    @property
    def streams_usage(self) -> bool:
        """Whether a stream ends with what it has cost."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ImageURL(RequestModel):
    """Where a picture is: a data URI, or an http(s) address where the server may fetch it."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.IMAGE_URL_FIELDS

    url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def to_picture(self) -> Picture:
        """It, still unopened."""
        return picture_from_url(self.url, self.detail, self.max_tiles)


def _as_image_url(value: object) -> object:
    """An `image_url` that is the address itself, as some clients send it, as an object."""
    return {"url": value} if isinstance(value, str) else value


class ChatTextPart(RequestModel):
    """Words."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["text"]
    text: str

    def to_content_part(self) -> str:
        """The text of the conversation."""
        return self.text


class RefusalPart(RequestModel):
    """A refusal in a reply that a client sends back; read as the assistant's text."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["refusal"]
    refusal: str

    def to_content_part(self) -> str:
        """The text of the conversation."""
        return self.refusal


def check_refusal_role(role: str, content: str | Sequence[object]) -> None:
    """Raises ValueError where somebody else's turn has a part of type refusal."""
    if role != "assistant" and RefusalPart in map(type, () if isinstance(content, str) else content):
        raise ValueError('only the assistant has parts of type "refusal": give text')


class ChatImagePart(RequestModel):
    """A picture among them."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_image_url)]

    def to_content_part(self) -> Picture:
        """The picture, still unopened."""
        return self.image_url.to_picture()


class ReasoningConfig(RequestModel):
    """How a model reasons before it answers: this one does not, so that there is nothing to set."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.REASONING_FIELDS


ChatContentPart = Annotated[
    Annotated[ChatTextPart, Tag("<text>")]
    | Annotated[ChatImagePart, Tag("<image_url>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    type_discriminator("a part", "unknown_part", "text", "image_url", "refusal"),
]


def content_field(part_type: Any) -> Any:
    """A field that holds the content of a message: a text, or a list of such parts."""
    return Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[part_type], Tag("<parts>"), Field(min_length=1, max_length=MAX_CONTENT_PARTS)],
        Discriminator(
            lambda value: content_tag(value) if isinstance(value, str | list) else None,
            custom_error_type="no_content",
            custom_error_message="give text or a list of parts",
        ),
    ]


class ChatMessage(RequestModel):
    """One turn of a conversation. Clients send back what they got, with fields that mean nothing here."""

    ignored_fields: ClassVar[IgnoredFields] = ignored_field_tables.MESSAGE_FIELDS

    role: Literal["system", "developer", "user", "assistant"]
    content: content_field(ChatContentPart)  # type: ignore[valid-type]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_tool_roles(cls, value: Any) -> Any:
        role = value.get("role") if isinstance(value, dict) else None
        if isinstance(role, str) and role in ignored_field_tables.HINT_BY_UNSUPPORTED_ROLE:
            raise unsupported_error(
                f"of the role {role}", ignored_field_tables.HINT_BY_UNSUPPORTED_ROLE[role]
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


def picture_from_url(url: str, detail: Detail | None = None, max_tiles: int | None = None) -> Picture:
    """The picture of an address. Nothing else is opened for a client: a path is none.

    Raises:
        Fault: it is neither an http(s) address nor a data URI.
    """
    url = normalize_url(url)
    has_data = is_data_uri(url) and "," in url[:MAX_DATA_URI_HEADER_CHARACTERS]
    is_address = url[:8].lower().startswith(("http://", "https://")) and len(url) <= MAX_URL_CHARACTERS
    if not ((has_data or is_address) and is_url(url)):
        raise APIError(
            400,
            "the url of a picture is neither a data URI (data:image/png;base64,...) nor an http(s) address",
            code="invalid_image_url",
        )
    return Picture(url, detail, max_tiles)


def message_texts(messages: Sequence[Message]) -> list[str]:
    """The texts of a conversation."""
    return [part for message in messages for part in message.parts if isinstance(part, str)]


def message_pictures(messages: Sequence[Message]) -> list[Picture]:
    """The pictures of a conversation.

    Raises:
        Fault: more than a request may have.
    """
    pictures = [part for message in messages for part in message.parts if isinstance(part, Picture)]
    if len(pictures) > MAX_PICTURES:
        raise APIError(
            400,
            f"the request has {len(pictures)} pictures; at most {MAX_PICTURES} are read",
            param="messages",
        )
    return pictures
