"""Replaces pictures and videos of a prompt by frames for the vision tower and placeholder text; what a picture costs.

The placeholder text of a picture differs between the families of models. Once the text is tokenized, `build_prompt`
finds the image tokens of each picture among the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby, repeat
from typing import TYPE_CHECKING, NamedTuple

from idefics.config import ImageProcessorConfig, PromptFormat
from idefics.errors import BadPrompt
from idefics.messages import ImageDetail, Picture, PictureOrVideo
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_and_preprocess
from idefics.processing.prefetch import create_prefetcher
from idefics.processing.tile_plan import plan_tiles
from idefics.processing.tokenizer import TextPiece
from idefics.processing.video import expand_video
from idefics.prompt import PreprocessedImage, Prompt

if TYPE_CHECKING:
    from idefics.processing.processor import Processor


class ImageCost(NamedTuple):
    """What a picture costs in a prompt of its own.

    Attributes:
        rows, columns: the grid of its tiles; (0, 0) where it stays whole.
        num_frames: how many inputs of the vision tower it becomes: its tiles and the whole picture.
        num_tokens: how many tokens of the prompt it takes.
    """

    rows: int
    columns: int
    num_frames: int
    num_tokens: int


def compute_image_cost(processor: Processor, width: int, height: int, image_detail: ImageDetail) -> ImageCost:
    """The cost of a picture of `width` x `height` pixels, upright."""
    image_config = processor.image_config
    plan = plan_tiles(width, height, image_config, image_detail)
    text = image_placeholder_text(
        processor.prompt_format,
        image_config.tokens_per_frame,
        plan.rows,
        plan.columns,
        follows_picture=False,
    )
    num_tokens = len(processor.tokenizer.encode(text, add_special_tokens=False))
    return ImageCost(plan.rows, plan.columns, len(plan.frame_sizes), num_tokens)


FAKE_IMAGE_TOKEN = "<fake_token_around_image>"
PromptPart = TextPiece | PictureOrVideo | PreprocessedImage


def expand_pictures(
    parts: Sequence[PromptPart],
    image_config: ImageProcessorConfig,
    prompt_format: PromptFormat,
    fetcher: Fetcher,
    image_detail: ImageDetail,
) -> tuple[list[TextPiece], list[PreprocessedImage]]:
    """Opens and preprocesses the pictures of a prompt, frames of videos among them, in their order.

    Args:
        parts: the prompt in order; pictures may be preprocessed already.
        image_detail: for pictures that have no detail of their own.

    Returns:
        The prompt's text, with a placeholder for each picture; and the pictures.

    Raises:
        BadPicture, BadVideo: one of them cannot be opened.
    """
    sources = [part.source for part in parts if isinstance(part, PictureOrVideo)]
    fetcher = create_prefetcher(fetcher, sources)

    def preprocess(part: PromptPart) -> Sequence[TextPiece | PreprocessedImage]:
        if not isinstance(part, PictureOrVideo):
            return [part]
        preprocessed: Sequence[TextPiece | PreprocessedImage]
        if isinstance(part, Picture):
            preprocessed = [open_and_preprocess(part, image_config, fetcher, image_detail)]
        else:
            preprocessed = expand_video(part, image_config, fetcher)
        if fetcher.on_opened is not None:
            fetcher.on_opened()
        return preprocessed

    pieces: list[TextPiece] = []
    pictures: list[PreprocessedImage] = []
    follows_picture = False
    for part in chain.from_iterable(map(preprocess, parts)):
        if isinstance(part, TextPiece):
            pieces.append(part)
        else:
            pictures.append(part)
            placeholder = image_placeholder_text(
                prompt_format,
                image_config.tokens_per_frame,
                part.rows,
                part.columns,
                follows_picture=follows_picture,
            )
            pieces.append(TextPiece(placeholder, trusted=True))
        follows_picture = not isinstance(part, TextPiece)
    if prompt_format.image_tokens == "inline":
        pieces = merge_adjacent_fake_tokens(pieces)
    return pieces, pictures


def image_placeholder_text(
    prompt_format: PromptFormat, tokens_per_frame: int, rows: int, columns: int, *, follows_picture: bool
) -> str:
    """The placeholder of one picture, as the released processors write it.

    Args:
        tokens_per_frame: how many image tokens one frame takes.
        rows, columns: the grid of the picture's tiles; (0, 0) where it is one frame.
        follows_picture: whether another picture's placeholder is directly before it.
    """
    if prompt_format.image_tokens == "cross_attention":
        placeholder = (
            f"{IMAGE_TOKEN}{FAKE_IMAGE_TOKEN}"  # neighbouring pictures share the fake token between them
        )
        return placeholder if follows_picture else f"{FAKE_IMAGE_TOKEN}{placeholder}"
    frame_text = IMAGE_TOKEN * tokens_per_frame
    if prompt_format.image_tokens == "inline":
        return f"{FAKE_IMAGE_TOKEN}{frame_text}" * (rows * columns + 1) + FAKE_IMAGE_TOKEN
    tiles_text = "".join(
        "".join(f"{FAKE_IMAGE_TOKEN}<row_{row}_col_{column}>{frame_text}" for column in range(1, columns + 1))
        + "\n"
        for row in range(1, rows + 1)
    )
    global_text = f"{FAKE_IMAGE_TOKEN}<global-img>{frame_text}{FAKE_IMAGE_TOKEN}"
    return f"{tiles_text}\n{global_text}" if tiles_text else global_text


def merge_adjacent_fake_tokens(pieces: Sequence[TextPiece]) -> list[TextPiece]:
    """Replaces two fake tokens in a row by one in all trusted text, as the processor of Idefics 2 does."""
    runs = groupby(pieces, key=lambda piece: piece.trusted)
    texts = [("".join(piece.text for piece in run), trusted) for trusted, run in runs]
    return [
        TextPiece(text.replace(FAKE_IMAGE_TOKEN * 2, FAKE_IMAGE_TOKEN) if trusted else text, trusted)
        for text, trusted in texts
    ]


def build_prompt(
    ids: Sequence[int],
    pictures: Sequence[PreprocessedImage],
    image_token_id: int | None,
    num_tokens_by_image: Sequence[int],
    end_of_document_id: int | None,
) -> Prompt:
    """A `Prompt` of token ids and pictures: finds which ids are each picture's image tokens.

    Args:
        pictures: in the order of the text; none where they are read later.
        image_token_id: the id of the image token; None: the ids have none.
        num_tokens_by_image: how many image tokens each picture has in `ids`.
        end_of_document_id: the token that ends a document; later tokens attend to no earlier picture; or None.

    Raises:
        BadPrompt: there are no ids, or more image tokens than the pictures have.
    """
    if not ids:
        raise BadPrompt("the prompt is empty: give some text or a picture")
    num_extra = ids.count(image_token_id) - sum(num_tokens_by_image)
    if num_extra:
        raise BadPrompt(
            f"the text holds {num_extra} {IMAGE_TOKEN} of its own, and the prompt "
            f"{len(num_tokens_by_image)} pictures: put each picture itself in its place instead of "
            f"writing {IMAGE_TOKEN}"
        )
    picture_of_next_image_token = chain.from_iterable(
        map(repeat, range(len(num_tokens_by_image)), num_tokens_by_image)
    )
    image_token_positions: list[list[int]] = [[] for _ in num_tokens_by_image]
    image_index, current_image = [], -1
    for position, id in enumerate(ids):
        if id == image_token_id:
            current_image = next(picture_of_next_image_token)
            image_token_positions[current_image].append(position)
        image_index.append(current_image)
        if id == end_of_document_id:
            current_image = -1
    return Prompt(tuple(ids), tuple(pictures), tuple(map(tuple, image_token_positions)), tuple(image_index))
