"""Keywords of a processor's call: nested groups, those that a tokenizer brings, those that ask for nothing, videos'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from idefics.config import VideoProcessorConfig
from idefics.errors import BadSetting

# Dicts of keywords: those of later groups say more exactly what is meant.
KWARG_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
# What a caller says of a video -> the setting of `VideoProcessorConfig`.
VIDEO_FIELD_BY_KWARG = {
    "fps": "fps",
    "target_fps": "fps",
    "max_frames": "max_frames",
    "num_frames": "max_frames",
    "skip_secs": "skip_seconds",
}

CallT = TypeVar("CallT", bound=Callable[..., Any])


def accept_kwarg_groups(function: CallT) -> CallT:
    """A processor's call that may be given its keywords in groups, such as `images_kwargs={"size": ...}`.

    A keyword in a group is as if it were given alone. What the tokenizer was loaded with (`max_length=...`) holds where
    the call does not say it.
    """

    @wraps(function)
    def call_with_flat_kwargs(self: Any, *args: Any, **keywords: Any) -> Any:
        plain_kwargs = {name: value for name, value in keywords.items() if name not in KWARG_GROUPS}
        groups = [keywords.get(name) or {} for name in KWARG_GROUPS]
        return function(self, *args, **flatten_kwargs(plain_kwargs, groups, self.tokenizer.init_kwargs))

    return cast(CallT, call_with_flat_kwargs)


def flatten_kwargs(
    kwargs: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords and groups of them as keywords; `defaults` where neither says otherwise.

    Raises:
        BadSetting: a keyword is given alone and in a group.
    """
    grouped: dict[str, Any] = {}
    for number, group in enumerate(groups):
        for name, value in group.items():
            if name in kwargs:
                raise BadSetting(f"{name} is given alone and in {KWARG_GROUPS[number]}: give it once")
            grouped[name] = value
    return {**defaults, **grouped, **kwargs}


def override_video_config(
    config: VideoProcessorConfig | None, video_kwargs: Mapping[str, Any]
) -> VideoProcessorConfig | None:
    """The plan with what a caller says of videos: `VIDEO_FIELD_BY_KWARG`, None where they leave it as it is.

    Without a plan they change nothing: the checkpoint was not trained with video, and refuses one.
    """
    for name, value in video_kwargs.items():
        minimum = 0 if name == "skip_secs" else 1 if VIDEO_FIELD_BY_KWARG[name] == "max_frames" else 1e-6
        if value is not None and not value >= minimum:
            raise BadSetting(f"{name} is {value!r}; give {'0 or more' if not minimum else 'more than 0'}")
    overrides = {
        VIDEO_FIELD_BY_KWARG[name]: value for name, value in video_kwargs.items() if value is not None
    }
    return None if config is None else replace(config, **overrides)
