"""Keyword arguments of a processor's call: nested groups, defaults of the tokenizer, and settings of videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from idefics.config import VideoProcessorConfig
from idefics.errors import BadSetting

# Dicts of keyword arguments; later groups have priority.
KWARG_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
# Argument -> field of `VideoProcessorConfig`.
VIDEO_FIELD_BY_KWARG = {
    "fps": "fps",
    "target_fps": "fps",
    "max_frames": "max_frames",
    "num_frames": "max_frames",
    "skip_secs": "skip_seconds",
}

CallT = TypeVar("CallT", bound=Callable[..., Any])


def accept_kwarg_groups(function: CallT) -> CallT:
    """Decorates the call of a processor: keyword arguments may come in groups, such as `images_kwargs={"size": ...}`.

    Arguments that the tokenizer was loaded with (`max_length=...`) are defaults. The call raises BadSetting for an
    argument that is given alone and in a group.
    """

    @wraps(function)
    def call_with_flat_kwargs(self: Any, *args: Any, **keywords: Any) -> Any:
        grouped: dict[str, Any] = {}
        for group_name in KWARG_GROUPS:
            for name, value in (keywords.pop(group_name, None) or {}).items():
                if name in keywords:
                    raise BadSetting(f"{name} is given alone and in {group_name}: give it once")
                grouped[name] = value
        return function(self, *args, **{**self.tokenizer.init_kwargs, **grouped, **keywords})

    return cast(CallT, call_with_flat_kwargs)


def override_video_config(
    config: VideoProcessorConfig | None, video_kwargs: Mapping[str, Any]
) -> VideoProcessorConfig | None:
    """The config of videos with a caller's arguments (keys of `VIDEO_FIELD_BY_KWARG`); None leaves a field as it is.

    Without a config there is nothing to change: the checkpoint was not trained with video, and refuses one.

    Raises:
        BadSetting: a number is too small.
    """
    for name, value in video_kwargs.items():
        minimum = 0 if name == "skip_secs" else 1 if VIDEO_FIELD_BY_KWARG[name] == "max_frames" else 1e-6
        if value is not None and not value >= minimum:
            raise BadSetting(f"{name} is {value!r}; give {'0 or more' if not minimum else 'more than 0'}")
    overrides = {
        VIDEO_FIELD_BY_KWARG[name]: value for name, value in video_kwargs.items() if value is not None
    }
    return None if config is None else replace(config, **overrides)
