"""`TrainingExample`, one row of training data before it is tokenized, whatever file it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics.batch.rows import Media
from idefics.messages import ContentPart, ImageDetail, Message, Picture

PICTURE = Picture("a picture of the row")  # stands for each picture in the prompt of an example


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplePicture:
    """A picture of an example.

    Attributes:
        media: the picture, not read yet.
        picture: has the picture's own detail.
    """

    media: Media
    picture: Picture = PICTURE

    def resolve_detail(self, detail: ImageDetail) -> ImageDetail:
        """The detail of this picture where others have `detail`."""
        return self.picture.resolve_detail(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExample:
    """One row of training data before it is tokenized.

    Attributes:
        name: identifies the row for people.
        prompt: messages, or the text and pictures of a document, as `Idefics.prompt` takes them.
        answer: what is learned after the prompt; None: all answers of the messages, or the document's text.
        pictures: those of the prompt, in its order.
        is_text_trusted: whether special tokens in the text of a document are recognised.
    """

    name: str
    prompt: Sequence[Message] | Sequence[ContentPart]
    answer: str | None
    pictures: tuple[ExamplePicture, ...] = ()
    is_text_trusted: bool = False
