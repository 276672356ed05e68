"""Marks the tokens of a prompt that the assistant says, for training on answers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from idefics.compat.media_inputs import VIDEO_TOKEN, as_text_list
from idefics.compat.tokenization_encoding import span_overlap_mask
from idefics.errors import BadSetting
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.picture_expansion import FAKE_IMAGE_TOKEN, image_placeholder_text
from idefics.processing.processor import Processor
from idefics.prompt import Prompt

TextSpans = Sequence[tuple[int, int]]  # (start, end) in characters of a text


def make_assistant_masks(
    processor: Processor, text: Any, prompts: Sequence[Prompt], spans: Sequence[TextSpans] | None
) -> list[list[int]] | None:
    """`make_assistant_mask` of each text, and its prompt, in a batch; None where `spans` are not given."""
    if not spans:
        return None
    return [
        make_assistant_mask(processor, *one) for one in zip(as_text_list(text), prompts, spans, strict=True)
    ]


def make_assistant_mask(processor: Processor, text: str, prompt: Prompt, spans: TextSpans) -> list[int]:
    """1 for each token of `prompt` that shares characters with a span of its text, else 0.

    The text is written as `processor` writes it, with image tokens in place of `<image>`, and spans are mapped to it.

    Args:
        processor: the processor that wrote the prompt.
        text: with `<image>` where the images of the prompt stand.
        spans: (start, end) in characters of `text`.

    Raises:
        BadSetting: the text has a video, or its tokens cannot be mapped to characters.
    """
    if VIDEO_TOKEN in text:
        raise BadSetting("return_assistant_tokens_mask is not done for texts with videos: leave it out")
    written_text = processor.prompt_format.prompt_prefix
    written_offsets: list[int] = []  # in `written_text`, of each character of `text`
    pictures = iter(prompt.pictures)
    for part in re.split(f"({IMAGE_TOKEN})", text):
        start, num_leading_spaces = len(written_text), 0
        written_part = part
        if part == IMAGE_TOKEN:
            picture = next(pictures)
            written_part = image_placeholder_text(
                processor.prompt_format,
                processor.image_config.tokens_per_frame,
                picture.rows,
                picture.columns,
                follows_picture=written_text.endswith(FAKE_IMAGE_TOKEN),
            )
            # Neighbouring images of Idefics 2 share the token between them.
            if processor.prompt_format.image_tokens == "inline" and written_text.endswith(FAKE_IMAGE_TOKEN):
                written_part = written_part.removeprefix(FAKE_IMAGE_TOKEN)
        elif processor.prompt_format.strips_text:
            written_part = part.strip(" ")
            num_leading_spaces = len(part) - len(part.lstrip(" "))
        written_text += written_part
        written_offsets += [
            start + min(max(at - num_leading_spaces, 0), len(written_part)) for at in range(len(part))
        ]
    written_offsets.append(len(written_text))
    encoding = processor.tokenizer.encode_with_offsets(
        written_text, add_special_tokens=processor.prompt_format.add_special_tokens
    )
    if tuple(encoding.ids) != prompt.ids:
        raise BadSetting(
            "return_assistant_tokens_mask is not done for this text: tokens cannot be told apart"
        )
    return span_overlap_mask(
        encoding.offsets,
        [(written_offsets[first], written_offsets[last]) for first, last in spans],
    )
