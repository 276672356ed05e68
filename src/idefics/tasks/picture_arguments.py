"""The `image` argument of the tasks: one picture, or a list of pictures in any form that can be iterated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from idefics.errors import BadPrompt, IdeficsError
from idefics.generation.call_inputs import ErrorPolicy, result_or_error
from idefics.media_sources import (
    BinaryFile,
    is_array_like,
    is_array_of_strings_or_objects,
    is_multi_frame_image,
    is_tensor,
    to_numpy_array,
)
from idefics.messages import PictureOrVideo
from idefics.options import OnError
from idefics.processing.video import to_picture_or_video
from idefics.validation import validate_list

if TYPE_CHECKING:
    from idefics.messages import PictureSource

    PictureInput = PictureOrVideo | PictureSource
    PictureInputs = Sequence[PictureInput]


def parse_image_argument(
    image: PictureInput | PictureInputs, on_error: OnError, stream: bool = False
) -> tuple[list[PictureOrVideo | IdeficsError], ErrorPolicy]:
    """Normalizes the `image` argument of a call.

    Args:
        image: one picture or video, or a list, array, generator or other iterable of them.
        on_error: the call's `on_error` argument.
        stream: the call's `stream` argument.

    Returns:
        The pictures (for one that is malformed its error), and how the call handles errors.

    Raises:
        BadPrompt: the list is empty or has no order, or repeats a Pillow image of several frames.
        BadPicture: the one picture is malformed.
        BadSetting: `on_error` or `stream` is wrong.
    """
    if not _is_picture_list(image):
        picture = to_picture_or_video(cast("PictureOrVideo", image))
        return [picture], ErrorPolicy("picture", 0, on_error, stream)
    items = to_numpy_array(image) if is_array_like(image) else image
    # A generator may yield one object again and again, changed each time: each is converted as it comes.
    if not isinstance(items, Iterator):
        items = validate_list("image", items, "a picture or a list of pictures", error_type=BadPrompt)
        ids = [id(picture) for picture in items if is_multi_frame_image(picture)]
        if len(set(ids)) < len(ids):
            raise BadPrompt(
                "the list has one Pillow image of several frames more than once, which all show its current frame: "
                "give copies, [page.copy() for page in PIL.ImageSequence.Iterator(picture)]"
            )
    pictures = [result_or_error(to_picture_or_video, item) for item in items]
    if not pictures:
        raise BadPrompt("the list of pictures is empty: give at least one")
    return pictures, ErrorPolicy("picture", len(pictures), on_error, stream)


def _is_picture_list(image: object) -> bool:
    """Whether the argument is an iterable of pictures. An open file is one picture, though it iterates its lines."""
    if isinstance(image, (str, bytes, bytearray, memoryview, Mapping, BinaryFile)) or is_tensor(image):
        return False
    if is_array_like(image):
        return is_array_of_strings_or_objects(to_numpy_array(image))
    return isinstance(image, Iterable)
