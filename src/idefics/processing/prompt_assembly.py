"""Builds a `Prompt` of token ids and preprocessed pictures: finds which ids are the image tokens of which picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from idefics.errors import BadPrompt
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.prompt import PreprocessedImage, Prompt


def build_prompt(
    ids: Sequence[int],
    pictures: Sequence[PreprocessedImage],
    image_token_id: int | None,
    num_tokens_by_image: Sequence[int],
    end_of_document_id: int | None,
) -> Prompt:
    """The prompt of these ids and pictures.

    Args:
        num_tokens_by_image: how many image tokens each picture has in `ids`.
        end_of_document_id: the token that ends a document; later tokens attend to no earlier picture; or None.

    Raises:
        BadPrompt: there are no ids, or more image tokens than the pictures have.
    """
    if not ids:
        raise BadPrompt("the prompt is empty: give some text or a picture")
    positions = [position for position, id in enumerate(ids) if id == image_token_id]
    if len(positions) != sum(num_tokens_by_image):
        raise BadPrompt(
            f"the text holds {len(positions) - sum(num_tokens_by_image)} {IMAGE_TOKEN} of its own, and the prompt "
            f"{len(pictures)} pictures: put each picture itself in its place instead of writing {IMAGE_TOKEN}"
        )
    remaining_positions = iter(positions)
    image_token_positions = tuple(tuple(islice(remaining_positions, size)) for size in num_tokens_by_image)
    image_by_position = {
        position: index for index, picture in enumerate(image_token_positions) for position in picture
    }
    image_index = _image_index_by_token(ids, image_by_position, end_of_document_id)
    return Prompt(tuple(ids), tuple(pictures), image_token_positions, image_index)


def _image_index_by_token(
    ids: Sequence[int], image_by_position: Mapping[int, int], end_of_document_id: int | None
) -> tuple[int, ...]:
    """For each token the index of its latest picture, or -1; an end of document still has its document's picture."""
    image_index, current_image = [], -1
    for position, id in enumerate(ids):
        current_image = image_by_position.get(position, current_image)
        image_index.append(current_image)
        if id == end_of_document_id:
            current_image = -1
    return tuple(image_index)
