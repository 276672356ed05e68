"""Keywords of a processor's call: nested groups, those that a tokenizer brings, those that ask for nothing, videos'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from idefics.compat.tokenization_rows import NEUTRAL, without_neutral
from idefics.config import VideoPlan
from idefics.errors import BadSetting

# Dicts of keywords: those of later groups say more exactly what is meant.
GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
# What a caller says of a video -> the setting of `VideoPlan`.
VIDEO_WORDS = {
    "fps": "fps",
    "target_fps": "fps",
    "max_frames": "most_frames",
    "num_frames": "most_frames",
    "skip_secs": "skip_seconds",
}
# Further words of transformers' call -> the values that ask for nothing here.
ALSO_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "do_sample_frames": (None, True, False),
    "load_audio_from_video": (None, False),
    "return_metadata": (None, False),
    "return_token_type_ids": (None, False),
    "video_load_backend": (None, "pyav", "decord", "opencv", "torchcodec", "torchvision"),
    "video_metadata": (None,),
}

Call = TypeVar("Call", bound=Callable[..., Any])


def takes_groups(call: Call) -> Call:
    """A processor's call that may be given its keywords in groups, such as `images_kwargs={"size": ...}`.

    A keyword in a group is as if it were given alone. What the tokenizer was loaded with (`max_length=...`) holds where
    the call does not say it.
    """

    @wraps(call)
    def flat(self: Any, *args: Any, **keywords: Any) -> Any:
        given = {name: value for name, value in keywords.items() if name not in GROUPS}
        groups = [keywords.get(name) or {} for name in GROUPS]
        return call(self, *args, **flattened(given, groups, self.tokenizer.init_kwargs))

    return cast(Call, flat)


def flattened(
    given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords and groups of them as keywords; `defaults` where neither says otherwise.

    Raises:
        BadSetting: a keyword is given alone and in a group.
    """
    grouped: dict[str, Any] = {}
    for number, group in enumerate(groups):
        for name, value in group.items():
            if name in given:
                raise BadSetting(f"{name} is given alone and in {GROUPS[number]}: give it once")
            grouped[name] = value
    return {**defaults, **grouped, **given}


def without_neutral_options(call: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of further keywords when those that ask for nothing are taken out.

    Raises:
        BadSetting: one asks for something that this package does not have.
    """
    without_neutral(call, {name: given[name] for name in given.keys() & NEUTRAL.keys()})
    for name in given.keys() & ALSO_NEUTRAL.keys():
        if given[name] not in ALSO_NEUTRAL[name]:
            raise BadSetting(f"{call}: {name} is {given[name]!r}, which is not done here: leave it out")
    return {name: value for name, value in given.items() if name not in NEUTRAL and name not in ALSO_NEUTRAL}


def video_plan_of(plan: VideoPlan | None, words: Mapping[str, Any]) -> VideoPlan | None:
    """The plan with what a caller says of videos: `VIDEO_WORDS`, None where they leave it as it is.

    Without a plan they change nothing: the checkpoint was not trained with video, and refuses one.
    """
    for name, value in words.items():
        least = 0 if name == "skip_secs" else 1 if VIDEO_WORDS[name] == "most_frames" else 1e-6
        if value is not None and not value >= least:
            raise BadSetting(f"{name} is {value!r}; give {'0 or more' if not least else 'more than 0'}")
    said = {VIDEO_WORDS[name]: value for name, value in words.items() if value is not None}
    return None if plan is None else replace(plan, **said)
