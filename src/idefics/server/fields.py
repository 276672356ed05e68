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
from idefics.processing.fetch import as_address, is_data, is_remote
from idefics.server import neutral_fields
from idefics.server.faults import Fault
from idefics.server.neutral import Unused
from idefics.server.output_format import MOST_FORM
from idefics.server.request_object import Fields, by_type, unsupported
from idefics.tasks.classify import MOST_LABELS

MOST_CHOICES = 16
MOST_PICTURES = 16
MOST_STOPS = 4
MOST_MESSAGES = 512
MOST_PARTS = 64
MOST_BIASES = 300
MOST_BANNED = 128
MOST_TOKENS = 1_000_000  # of an answer; a model's own limit is lower
NEW_TOKENS = 256  # where a request does not say it
LONGEST_ADDRESS = 2048  # characters
LONGEST_HEAD = 256  # of a data URI, before its comma


def _few_enough(choices: list[str]) -> list[str]:
    if (size := sum(len(choice.encode(errors="surrogatepass")) for choice in choices)) > MOST_FORM:
        raise ValueError(f"the choices have {size:,} bytes together; at most {MOST_FORM:,} are read")
    return choices


TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]

Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[
    dict[TokenId, Bias], Field(max_length=MOST_BIASES, json_schema_extra={"additionalProperties": False})
]

Text = Annotated[str, Field(min_length=1, max_length=256)]
Choices = Annotated[list[Text], AfterValidator(_few_enough)]
Texts = Annotated[list[Text], Field(max_length=MOST_STOPS)]


def content_kind(value: Any) -> str:
    """The tag of a content: a text alone, or a list of parts."""
    return "<words>" if isinstance(value, str) else "<parts>"


Stops = Annotated[
    Annotated[Text, Tag("<words>")] | Annotated[Texts, Tag("<parts>")], Discriminator(content_kind)
]


class Choosing(Fields):
    """How words are chosen: what all routes call the same."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Biases | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Stops | None = None
    regex: str | None = Field(None, min_length=1, max_length=4096)
    choices: Choices | None = Field(None, min_length=1, max_length=MOST_LABELS)
    banned: list[Text] | None = Field(None, max_length=MOST_BANNED)
    skip_special_tokens: bool | None = None

    def wishes(self) -> dict[str, Any]:
        """The keywords of a call, as far as they are said."""
        said = {name: value for name in Choosing.model_fields if (value := getattr(self, name)) is not None}
        if self.logit_bias is not None:
            said["logit_bias"] = {int(id): value for id, value in self.logit_bias.items()}
        return said


def _unkept(store: bool) -> bool:
    if store:
        raise ValueError("nothing that is asked here is kept: leave it out, or say false")
    return store


Unkept = Annotated[bool, AfterValidator(_unkept)]


class StreamOptions(Fields):
    """What a stream tells beside the answer."""

    unused: ClassVar[Unused] = neutral_fields.STREAM_OPTIONS

    include_usage: bool | None = None


class Asked(Choosing):
    """What OpenAI's older two routes share."""

    model: str
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and options.include_usage and not info.data.get("stream"):
            raise ValueError(
                'include_usage asks for the last event of a stream, and stream is not true: say "stream": true, or '
                "leave it out (an answer that is not streamed always has its usage)"
            )
        return options

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with what it has cost."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ImageAddress(Fields):
    """Where a picture is: a data URI, or an http(s) address where the server may fetch it."""

    unused: ClassVar[Unused] = neutral_fields.IMAGE_ADDRESS

    url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def picture(self) -> Picture:
        """It, still unopened."""
        return picture_at(self.url, self.detail, self.max_tiles)


def _with_url(address: object) -> object:
    """An `image_url` that is the address itself, as some clients send it, as an object."""
    return {"url": address} if isinstance(address, str) else address


class TextPart(Fields):
    """Words."""

    unused: ClassVar[Unused] = neutral_fields.PART

    type: Literal["text"]
    text: str

    def part(self) -> str:
        """The text of the conversation."""
        return self.text


class RefusalPart(Fields):
    """A refusal in a reply that a client sends back; read as the assistant's text."""

    unused: ClassVar[Unused] = neutral_fields.PART

    type: Literal["refusal"]
    refusal: str

    def part(self) -> str:
        """The text of the conversation."""
        return self.refusal


def only_of_assistant(role: str, content: str | Sequence[object]) -> None:
    """Raises ValueError where somebody else's turn has a part of type refusal."""
    if role != "assistant" and RefusalPart in map(type, () if isinstance(content, str) else content):
        raise ValueError('only the assistant has parts of type "refusal": give text')


class ImagePart(Fields):
    """A picture among them."""

    unused: ClassVar[Unused] = neutral_fields.PART

    type: Literal["image_url"]
    image_url: Annotated[ImageAddress, BeforeValidator(_with_url)]

    def part(self) -> Picture:
        """The picture, still unopened."""
        return self.image_url.picture()


class ReasoningField(Fields):
    """How a model reasons before it answers: this one does not, so that there is nothing to set."""

    unused: ClassVar[Unused] = neutral_fields.REASONING_FIELD


PartField = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    by_type("a part", "unknown_part", "text", "image_url", "refusal"),
]


def content_of(part_field: Any) -> Any:
    """A field that holds the content of a message: a text, or a list of such parts."""
    return Annotated[
        Annotated[str, Tag("<words>")]
        | Annotated[list[part_field], Tag("<parts>"), Field(min_length=1, max_length=MOST_PARTS)],
        Discriminator(
            lambda value: content_kind(value) if isinstance(value, str | list) else None,
            custom_error_type="no_content",
            custom_error_message="give text or a list of parts",
        ),
    ]


class MessageField(Fields):
    """One turn of a conversation. Clients send back what they got, with fields that mean nothing here."""

    unused: ClassVar[Unused] = neutral_fields.MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: content_of(PartField)  # type: ignore[valid-type]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_no_tool(cls, said: Any) -> Any:
        role = said.get("role") if isinstance(said, dict) else None
        if isinstance(role, str) and role in neutral_fields.UNSUPPORTED_ROLES:
            raise unsupported(f"of the role {role}", neutral_fields.UNSUPPORTED_ROLES[role])
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


def picture_at(url: str, detail: Detail | None = None, max_tiles: int | None = None) -> Picture:
    """The picture of an address. Nothing else is opened for a client: a path is none.

    Raises:
        Fault: it is neither an http(s) address nor a data URI.
    """
    url = as_address(url)
    has_data = is_data(url) and "," in url[:LONGEST_HEAD]
    is_address = url[:8].lower().startswith(("http://", "https://")) and len(url) <= LONGEST_ADDRESS
    if not ((has_data or is_address) and is_remote(url)):
        raise Fault(
            400,
            "the url of a picture is neither a data URI (data:image/png;base64,...) nor an http(s) address",
            code="invalid_image_url",
        )
    return Picture(url, detail, max_tiles)


def texts_of(messages: Sequence[Message]) -> list[str]:
    """The texts of a conversation."""
    return [part for message in messages for part in message.parts if isinstance(part, str)]


def pictures_of(messages: Sequence[Message]) -> list[Picture]:
    """The pictures of a conversation.

    Raises:
        Fault: more than a request may have.
    """
    pictures = [part for message in messages for part in message.parts if isinstance(part, Picture)]
    if len(pictures) > MOST_PICTURES:
        raise Fault(
            400,
            f"the request has {len(pictures)} pictures; at most {MOST_PICTURES} are read",
            param="messages",
        )
    return pictures
