"""Which tokens of a prompt the assistant says, for training on answers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from idefics.compat.processing_places import VIDEO
from idefics.compat.tokenization_rows import within
from idefics.errors import BadSetting
from idefics.processing.chat import IMAGE
from idefics.processing.marks import FAKE, marks
from idefics.processing.processor import Processor
from idefics.prompt import Prompt


def assistant_mask(
    writer: Processor, text: str, prompt: Prompt, spans: Sequence[tuple[int, int]]
) -> list[int]:
    """1 for each token of `prompt` that shares characters with a span of the text that it was made of.

    Args:
        writer: what made the prompt.
        text: with `<image>` where the pictures of the prompt stand.
        spans: (start, end) in characters of `text`.

    Raises:
        BadSetting: the text has a video, which is read as other words than its own.
    """
    if VIDEO in text:
        raise BadSetting("return_assistant_tokens_mask is not done for texts with videos: leave it out")
    whole = writer.style.start
    moved = {0: len(whole)}
    pictures, end = iter(prompt.pictures), 0
    for part in re.split(f"({IMAGE})", text):
        start, end = end, end + len(part)
        written = part
        if part == IMAGE:
            picture = next(pictures)
            written = marks(
                writer.style,
                writer.plan.tokens,
                picture.rows,
                picture.columns,
                follows_picture=whole.endswith(FAKE),
            )
            if writer.style.marks == "frames" and whole.endswith(FAKE):  # Idefics 2: neighbours share one
                written = written.removeprefix(FAKE)
        else:
            written = part.strip(" ") if writer.style.strip_items else part
            blank = part.index(written) if written else 0
            shifts = ((at, min(max(at - blank, 0), len(written))) for at in range(len(part)))
            moved |= {start + at: len(whole) + shift for at, shift in shifts}
        whole += written
        moved[end] = len(whole)
    encoding = writer.tokenizer.encoding(whole, adds_special=writer.style.adds_special)
    if tuple(encoding.ids) != prompt.ids:
        raise BadSetting(
            "return_assistant_tokens_mask is not done for this text: tokens cannot be told apart"
        )
    return within(encoding.offsets, [(moved[first], moved[last]) for first, last in spans])
