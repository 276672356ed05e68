"""What requests are made of, whatever they are for: how words are chosen, pictures in a conversation.

A field that is not here is refused with its name. Everything has a limit, so that no request is much work to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from idefics.messages import Detail, Message, Part, Picture
from idefics.processing.fetch import is_remote
from idefics.server.faults import Fault

MOST_CHOICES = 16
MOST_PICTURES = 16
MOST_STOPS = 4
MOST_MESSAGES = 512
MOST_PARTS = 64
NEW_TOKENS = 256  # where a request does not say it
LONGEST_ADDRESS = 2048  # characters
LONGEST_HEAD = 256  # of a data URI, before its comma


class Fields(BaseModel):
    """JSON as it says, with no field that is not known here."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Choosing(Fields):
    """How words are chosen, by the names of OpenAI's API, and what goes beyond it."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)

    def wishes(self) -> dict[str, Any]:
        """Those of them that are said."""
        return {name: value for name in Choosing.model_fields if (value := getattr(self, name)) is not None}


class ImageAddress(Fields):
    """Where a picture is: a data URI, or an http(s) address where the server may fetch it."""

    url: str
    detail: Detail | None = None
    max_tiles: int | None = Field(None, ge=1, le=1024)

    def picture(self) -> Picture:
        """It, still unopened."""
        return picture_at(self.url, self.detail, self.max_tiles)


class TextPart(Fields):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(Fields):
    """A picture among them."""

    type: Literal["image_url"]
    image_url: ImageAddress


def kind_of(value: Any) -> str:
    """The tag of a part: its "type"."""
    return f"<{value.get('type')}>" if isinstance(value, dict) else "<>"


def content_kind(value: Any) -> str:
    """The tag of a content: a text alone, or a list of parts."""
    return "<words>" if isinstance(value, str) else "<parts>"


PartField = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(
        kind_of,
        custom_error_type="unknown_part",
        custom_error_message='a part has a "type", which is "text" or "image_url"',
    ),
]
Content = Annotated[
    Annotated[str, Tag("<words>")]
    | Annotated[list[PartField], Tag("<parts>"), Field(min_length=1, max_length=MOST_PARTS)],
    Discriminator(content_kind),
]


class MessageField(Fields):
    """One turn of a conversation. Clients send back what they got: fields of it that mean nothing here are empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: None = None
    annotations: list[None] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[None] | None = Field(None, max_length=0)

    def message(self) -> Message:
        """As the rest of the house says it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        if isinstance(content, str):
            return Message(role, (content,))
        parts: list[Part] = [
            part.text if isinstance(part, TextPart) else part.image_url.picture() for part in content
        ]
        return Message(role, tuple(parts))


def picture_at(url: str, detail: Detail | None = None, max_tiles: int | None = None) -> Picture:
    """The picture of an address. Nothing else is opened for a client: a path is none.

    Raises:
        Fault: it is neither an http(s) address nor a data URI.
    """
    is_data = url[:5].lower() == "data:" and "," in url[:LONGEST_HEAD]
    is_address = url[:8].lower().startswith(("http://", "https://")) and len(url) <= LONGEST_ADDRESS
    if not ((is_data or is_address) and is_remote(url)):
        raise Fault(
            400,
            "the url of a picture is neither a data URI (data:image/png;base64,...) nor an http(s) address",
            code="invalid_image_url",
        )
    return Picture(url, detail, max_tiles)


def count_pictures(messages: Sequence[Message]) -> int:
    """How many pictures a conversation holds.

    Raises:
        Fault: more than a request may have.
    """
    count = sum(isinstance(part, Picture) for message in messages for part in message.parts)
    if count > MOST_PICTURES:
        raise Fault(
            400, f"the request has {count} pictures; at most {MOST_PICTURES} are read", param="messages"
        )
    return count
