"""Replaces each picture and video of a prompt by frames for the vision tower and placeholder text.

Works on the parts of a prompt before they are tokenized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from idefics.config import ImageProcessorConfig, PromptFormat
from idefics.messages import ImageDetail, Picture, PictureOrVideo, Video
from idefics.processing.fetch import Fetcher
from idefics.processing.image_placeholders import image_placeholder_text, merge_adjacent_fake_tokens
from idefics.processing.image_processor import open_and_preprocess
from idefics.processing.prefetch import create_prefetcher
from idefics.processing.tokenizer import TextPiece
from idefics.processing.video import expand_video
from idefics.prompt import PreprocessedImage

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
    pieces: list[TextPiece] = []
    pictures: list[PreprocessedImage] = []
    follows_picture = False
    for part in _preprocess_parts(parts, image_config, fetcher, image_detail):
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


def _preprocess_parts(
    parts: Sequence[PromptPart],
    image_config: ImageProcessorConfig,
    fetcher: Fetcher,
    image_detail: ImageDetail,
) -> Iterator[TextPiece | PreprocessedImage]:
    """Preprocesses the pictures among the parts, and replaces videos by captions and frames."""
    for part in parts:
        if isinstance(part, Picture):
            yield open_and_preprocess(part, image_config, fetcher, image_detail)
        elif isinstance(part, Video):
            yield from expand_video(part, image_config, fetcher)
        else:
            yield part
