"""Messages of chat completions: turns, their content parts, and pictures by URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from idefics.messages import ContentPart, Detail, Message, Picture, PictureOrVideo, Video
from idefics.processing.fetch import is_data_uri, is_url, normalize_source_text
from idefics.server import ignored_field_tables
from idefics.server.admission import count_pictures
from idefics.server.errors import APIError
from idefics.server.request_context import RequestContext
from idefics.server.request_model import (
    RequestModel,
    make_field_table,
    text_or_list,
    union_by_type,
    unsupported_error,
)

MAX_MESSAGES = 512
MAX_PICTURES = 16
MAX_CONTENT_PARTS = 64
MAX_VIDEO_FRAMES = 128  # of all videos of a request
MAX_URL_CHARACTERS = 2048
MAX_DATA_URI_HEADER_CHARACTERS = 256  # of a data URI, before its comma

MaxTiles = Annotated[int, Field(ge=1, le=1024)]


class ImageURL(RequestModel):
    """Where a picture is: a data URI, or an http(s) address if the server fetches pictures."""

    ignored_fields = make_field_table(
        any_value=("format",),
        null_or_hint={"file_id": "send the picture as a data URI"},
    )

    url: str
    detail: Detail | None = None
    max_tiles: MaxTiles | None = None


def _wrap_plain_url(value: object) -> object:
    """Converts a plain URL to `{"url": URL}`: some clients send `image_url` as a string."""
    return {"url": value} if isinstance(value, str) else value


class TextPart(RequestModel):
    """A part of a message that is text; base class of the text parts of chat completions and of responses."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    text: str

    def to_content_part(self) -> ContentPart:
        """The text as a part of an `idefics.Message`."""
        return self.text


class ChatTextPart(TextPart):
    """A part of a message that is text."""

    type: Literal["text"]


class RefusalPart(RequestModel):
    """A refusal in an answer that the client sends back; read as text of the assistant."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["refusal"]
    refusal: str

    def to_content_part(self) -> ContentPart:
        """The refusal as a text part of an `idefics.Message`."""
        return self.refusal


class ChatImagePart(RequestModel):
    """A part of a message that is a picture."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_wrap_plain_url)]

    def to_content_part(self) -> ContentPart:
        """The picture, not fetched yet, as a part of an `idefics.Message`."""
        return picture_from_url(self.image_url.url, self.image_url.detail, self.image_url.max_tiles)


class ChatVideoPart(RequestModel):
    """A part of a message that is a video, given as its frames, which are data URIs; video files are not read."""

    ignored_fields = ignored_field_tables.CONTENT_PART_FIELDS

    type: Literal["video"]
    video: list[str] = Field(min_length=1, max_length=MAX_VIDEO_FRAMES)
    fps: float | None = Field(None, gt=0, le=1000)

    def to_content_part(self) -> ContentPart:
        """The video as a part of an `idefics.Message`. Raises an `APIError` (400) if a frame is no data URI."""
        for url in self.video:
            if not is_data_uri(url):
                raise APIError(
                    400,
                    "a frame of a video is no data URI (data:image/jpeg;base64,...): frames are not fetched",
                    code="invalid_image_url",
                )
        return Video([picture_from_url(url) for url in self.video], self.fps)


ChatContentPart = union_by_type(
    'a part has a "type", which is "text", "image_url", "video" or "refusal"',
    text=ChatTextPart,
    image_url=ChatImagePart,
    video=ChatVideoPart,
    refusal=RefusalPart,
)


def content_field_type(part_type: Any) -> Any:
    """The type annotation of the field `content` of a message: a text, or a list of `part_type`."""
    parts_type = Annotated[list[part_type], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
    return text_or_list(str, parts_type, "give text or a list of parts")


class ConversationMessage(RequestModel):
    """A turn of a conversation; base of the messages of chat completions and of responses."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Any

    @model_validator(mode="after")
    def _check_refusal_role(self) -> Self:
        """Raises ValueError if a message of another role than the assistant's has a part of type `refusal`."""
        check_refusal_role(self.role, self.content)
        return self

    def to_message(self) -> Message:
        """The turn as an `idefics.Message`, with pictures that are not fetched yet."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Message(role, (self.content,))
        return Message(role, tuple(part.to_content_part() for part in self.content))


class ChatMessage(ConversationMessage):
    """A turn of a conversation. Fields that only answers have are ignored, since clients send answers back."""

    ignored_fields = ignored_field_tables.MESSAGE_FIELDS

    content: content_field_type(ChatContentPart)  # type: ignore[valid-type]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_tool_roles(cls, value: Any) -> Any:
        """Raises an error with a hint for the roles `tool` and `function`, before the other fields are validated."""
        role = value.get("role") if isinstance(value, dict) else None
        if role in ("tool", "function"):
            raise unsupported_error(f"of the role {role}", ignored_field_tables.CHAT_TOOLS_HINT)
        return value


def check_refusal_role(role: str, content: str | Sequence[object]) -> None:
    """Raises ValueError if a message of another role than the assistant's has a part of type `refusal`.

    Args:
        content: the message's text, or its parts.
    """
    if role != "assistant" and RefusalPart in map(type, () if isinstance(content, str) else content):
        raise ValueError('only the assistant has parts of type "refusal": give text')


def picture_from_url(url: str, detail: Detail | None = None, max_tiles: int | None = None) -> Picture:
    """The picture at a URL, not fetched yet. Clients cannot name files of this machine.

    Raises:
        APIError: 400, the URL is neither an http(s) address nor a data URI.
    """
    url = normalize_source_text(url)
    is_bounded = (
        "," in url[:MAX_DATA_URI_HEADER_CHARACTERS] if is_data_uri(url) else len(url) <= MAX_URL_CHARACTERS
    )
    if not (is_bounded and is_url(url)):
        raise APIError(
            400,
            "the url of a picture is neither a data URI (data:image/png;base64,...) nor an http(s) address",
            code="invalid_image_url",
        )
    return Picture(url, detail, max_tiles)


async def submit_conversation(
    context: RequestContext,
    messages: Sequence[Message],
    generation_kwargs: Mapping[str, Any],
    *,
    num_choices: int = 1,
) -> None:
    """Submits a conversation to the engine; the arguments are those of `RequestContext.submit_prompt`.

    Raises:
        APIError: 400, more than `MAX_PICTURES`; or as in `RequestContext.submit_prompt`.
    """
    parts = [part for message in messages for part in message.parts]
    context.check_and_count_texts(part for part in parts if isinstance(part, str))
    pictures = [part for part in parts if isinstance(part, PictureOrVideo)]
    num_pictures = sum(isinstance(one, Picture) for one in pictures)
    num_frames = sum(map(count_pictures, pictures)) - num_pictures
    for count, what, limit in (
        (num_pictures, "pictures", MAX_PICTURES),
        (num_frames, "frames of videos", MAX_VIDEO_FRAMES),
    ):
        if count > limit:
            message = f"the request has {count} {what}; the limit is {limit}"
            raise APIError(400, message, param="messages")
    await context.submit_prompt(
        partial(
            context.vlm.prompt,
            messages,
            continue_final_message=generation_kwargs.get("continues", False),
        ),
        generation_kwargs,
        num_choices=num_choices,
        pictures=pictures,
    )
