"""The keyword options of calls that generate: their types, defaults, and one line on each for `help`. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, cleandoc, formatannotation, signature
from typing import Annotated, Any, Literal, Required, TypedDict, TypeVar, get_args, get_type_hints

from idefics.config import Sampling
from idefics.messages import Detail, ImageDetail
from idefics.structured import OutputConstraint
from idefics.validation import reject_unknown_arguments

F = TypeVar("F", bound=Callable[..., Any])

OnError = Literal["raise", "return"]
ON_ERROR_CHOICES = get_args(OnError)


class GenerationOptions(TypedDict, total=False):
    """How an answer is generated: the fields of `Sampling` and `OutputConstraint`, stop strings and banned strings.

    `skip_special_tokens`: None, the default, leaves control tokens out of answers and keeps the rest, such as DocTags;
    True leaves every special token out, False keeps every one.
    """

    max_new_tokens: Annotated[int, "at most this many tokens are generated"]
    temperature: Annotated[
        float, "0 takes the most likely token; above 0 tokens are sampled, the more freely the higher"
    ]
    top_k: Annotated[int, "sample from the k most likely tokens; 0: from all"]
    top_p: Annotated[float, "sample from the smallest set of most likely tokens whose probability reaches p"]
    min_p: Annotated[float, "drop tokens less likely than min_p times the most likely one"]
    repetition_penalty: Annotated[float, "above 1: tokens of the prompt and the answer become less likely"]
    presence_penalty: Annotated[float, "subtracted from the logit of each token that the answer already has"]
    frequency_penalty: Annotated[float, "subtracted as many times as the answer already has the token"]
    logit_bias: Annotated[Mapping[int, float], "token id -> number added to its logit, -100 to 100"]
    num_beams: Annotated[int, "beams of a beam search, with temperature 0; 1: none"]
    seed: Annotated[int | None, "makes sampling repeatable"]
    logprobs: Annotated[bool, "whether the answer has the log-probability of each token"]
    top_logprobs: Annotated[int, "how many alternatives to each token are returned, with logprobs=True"]
    stop: Annotated[str | Sequence[str], "texts that end the answer and are left out of it"]
    banned: Annotated[str | Sequence[str], "texts that the answer never contains"]
    regex: Annotated[str | None, "a regular expression that the whole answer matches"]
    choices: Annotated[Sequence[str] | None, "texts, one of which is the answer"]
    schema: Annotated[Mapping[str, Any] | None, "a JSON schema that the answer follows"]
    skip_special_tokens: Annotated[
        bool | None,
        "None leaves control tokens out and keeps the rest, such as DocTags; True: keeps none; False: keeps all",
    ]
    timeout: Annotated[float | None, "seconds after which the call raises RequestTimeout"]


class Options(GenerationOptions, total=False):
    """The keywords of every call that generates: `def my_call(**options: Unpack[Options])`."""

    detail: Annotated[
        Detail, 'tiles per picture: "high": as released; "low": one frame; "auto": no enlarging'
    ]
    max_tiles: Annotated[
        int | None, "at most this many frames per picture; None: as many as the checkpoint makes"
    ]


class MapOptions(Options, total=False):
    """The options of `map`: those of the tasks that write, and those of `classify`."""

    labels: Annotated[Sequence[str] | None, "for 'classify': 2 to 1000 labels to choose from"]
    length_normalized: Annotated[bool, "for 'classify': divide each label's score by its number of tokens"]
    calibrated: Annotated[bool, "for 'classify': subtract each label's score for a plain grey picture"]


class AnswerKeywords(Options, total=False):
    """The keywords of a call that returns answers and raises errors, for type checkers."""

    stream: Literal[False]
    on_error: Literal["raise"]


class StreamKeywords(Options, total=False):
    """The keywords of a call that returns a stream, for type checkers."""

    stream: Required[Literal[True]]
    on_error: Literal["raise"]


class OnErrorReturnKeywords(Options, total=False):
    """The keywords of a call that returns errors in the place of answers, for type checkers."""

    stream: Literal[False]
    on_error: Required[Literal["return"]]


class ScoringKeywords(TypedDict, total=False):
    """The keywords that `score` and `classify` share, for type checkers."""

    detail: Detail
    max_tiles: int | None
    timeout: float | None


class ClassifyKeywords(ScoringKeywords, total=False):
    """The keywords of `classify`, for type checkers."""

    length_normalized: bool
    calibrated: bool


DEFAULT_OPTIONS: dict[str, Any] = {
    **{
        field.name: field.default
        for record in (Sampling, OutputConstraint, ImageDetail)
        for field in fields(record)
    },
    "logit_bias": {},
    "stop": (),
    "banned": (),
    "skip_special_tokens": None,
    "timeout": None,
    "labels": None,
    "length_normalized": False,
    "calibrated": False,
}


def document_and_check_options(options_type: type = Options, **defaults: Any) -> Callable[[F], F]:
    """Decorator for a method that ends in `**options: Unpack[options_type]`: documents and checks its options.

    The signature and the docstring list each option. Other keywords are refused: see `reject_unknown_arguments`.

    Args:
        options_type: a `TypedDict` whose fields are `Annotated` with one line of documentation each.
        defaults: the method's defaults where they differ from `DEFAULT_OPTIONS`.
    """

    def decorate(function: F) -> F:
        hints = get_type_hints(options_type, include_extras=True)
        own_signature = signature(function)
        parameters = [
            one for one in own_signature.parameters.values() if one.kind is not Parameter.VAR_KEYWORD
        ]
        lines = [cleandoc(function.__doc__ or ""), "", "Options:"]
        for name, hint in hints.items():
            option_type, line = get_args(hint)
            default = defaults.get(name, DEFAULT_OPTIONS[name])
            parameters.append(
                Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=option_type)
            )
            type_text = formatannotation(option_type).replace("collections.abc.", "").replace("typing.", "")
            lines.append(f"    {name} ({type_text}; {default!r}): {line}.")
        function.__doc__ = "\n".join(lines)
        return reject_unknown_arguments(
            function, display_signature=own_signature.replace(parameters=parameters)
        )

    return decorate


def pop_image_detail(options: Options) -> ImageDetail:
    """Removes the options about pictures, `detail` and `max_tiles`, from the others and returns them.

    Raises:
        BadSetting: one of them is wrong.
    """
    return ImageDetail(options.pop("detail", "high"), options.pop("max_tiles", None))
