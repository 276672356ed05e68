"""Reports how far requests are that have no token yet, to those callers that gave `on_progress`. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics.engine.request import ProgressStage, RequestProgress
from idefics.engine.request_state import RequestState

if TYPE_CHECKING:
    from idefics.engine.encoder_cache import EncoderCache

REPORTED_FRAMES = 4  # that one step encodes of a request that reports its progress


def reports_progress(state: RequestState) -> bool:
    """Whether the caller of a request wants to know how far it is, and it has no token yet."""
    return state.request.on_progress is not None and not state.handle.ids


def report_queue_position(state: RequestState, num_before: int) -> None:
    """Reports how many requests wait before one that waits."""
    if reports_progress(state):
        _report(state, "queued", 0, num_before)


def report_prompt_progress(state: RequestState, encoder_cache: EncoderCache) -> None:
    """Reports how much of a running request's prompt is computed; nothing once it is computed and tokens follow.

    While frames are missing, these are what is reported: those of pictures that tokens need which are not computed yet.
    """
    if not reports_progress(state) or len(state.sequences) > 1:
        return
    (sequence,), prompt = state.sequences, state.request.prompt
    images = {image.content_hash: image for image in prompt.pictures}
    needed = {
        prompt.pictures[image_span.image_index].content_hash
        for image_span in state.image_spans
        if image_span.last_position >= sequence.num_computed_tokens
    }
    num_missing = sum(encoder_cache.count_missing_frames(images[key]) for key in needed)
    if num_missing:
        num_frames = sum(len(image.frames) for image in images.values())
        _report(state, "tiles", num_frames - num_missing, num_frames)
    else:
        _report(state, "prompt", sequence.num_computed_tokens, len(prompt))


def _report(state: RequestState, stage: ProgressStage, done: int, total: int) -> None:
    """Calls the request's `on_progress`; an exception of it fails the request."""
    assert state.request.on_progress is not None
    try:
        state.request.on_progress(RequestProgress(stage, done, total))
    except Exception as error:
        state.handle.fail(error)
