"""The keyword options of calls that generate, with their types. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from idefics.messages import Detail


class Wishes(TypedDict, total=False):
    """How a prompt is to be answered: the fields of `Sampling` and of `Form`, stop strings and banned words.

    `skip_special_tokens`: None, the default, leaves control tokens out of answers and shows the rest, such as DocTags;
    True leaves every special token out, False shows every one.
    """

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    num_beams: int
    seed: int | None
    logprobs: bool
    top_logprobs: int
    stop: str | Sequence[str]
    banned: str | Sequence[str]
    regex: str | None
    choices: Sequence[str] | None
    schema: Mapping[str, Any] | None
    skip_special_tokens: bool | None


class Options(Wishes, total=False):
    """What every call that generates takes: `Wishes`, and the fields of `ImageDetail`."""

    detail: Detail
    max_tiles: int | None
