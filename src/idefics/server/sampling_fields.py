"""Fields that requests of several routes share: sampling, length, constraints on the answer, streaming.

Every field is bounded, so that no request takes long to validate.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from idefics.server.errors import APIError
from idefics.server.ignored_field_tables import REASONING_HINT
from idefics.server.request_model import RequestModel, make_field_table, text_or_list
from idefics.server.response_format import MAX_CONSTRAINT_BYTES, ResponseFormat
from idefics.tasks.classify import MAX_LABELS

MAX_CHOICES = 16
MAX_STOP_STRINGS = 4
MAX_LOGIT_BIASES = 300
MAX_BANNED_STRINGS = 128
MAX_NEW_TOKENS = 1_000_000  # of an answer; a model's own limit is lower
DEFAULT_MAX_NEW_TOKENS = 256  # of chat completions and responses


def _check_choices_size(choices: list[str]) -> list[str]:
    """Returns the choices; raises ValueError if all of them together have too many characters."""
    if (size := sum(len(choice.encode(errors="surrogatepass")) for choice in choices)) > MAX_CONSTRAINT_BYTES:
        raise ValueError(f"the choices have {size:,} bytes together; the limit is {MAX_CONSTRAINT_BYTES:,}")
    return choices


TokenLimit = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]

LogitBiasValue = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[
    dict[TokenId, LogitBiasValue],
    Field(max_length=MAX_LOGIT_BIASES, json_schema_extra={"additionalProperties": False}),
]

ShortText = Annotated[str, Field(min_length=1, max_length=256)]
ChoiceTexts = Annotated[list[ShortText], AfterValidator(_check_choices_size)]
StopTexts = Annotated[list[ShortText], Field(max_length=MAX_STOP_STRINGS)]


class SamplingFields(RequestModel):
    """Fields for sampling and for constraints on the answer, which have the same names on every route."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: text_or_list(ShortText, StopTexts) | None = None  # type: ignore[valid-type]
    regex: str | None = Field(None, min_length=1, max_length=4096)
    choices: ChoiceTexts | None = Field(None, min_length=1, max_length=MAX_LABELS)
    banned: list[ShortText] | None = Field(None, max_length=MAX_BANNED_STRINGS)
    skip_special_tokens: bool | None = None

    def sampling_kwargs(self) -> dict[str, Any]:
        """The fields that the request has, as keyword arguments of `Idefics.submit`."""
        kwargs = self.model_dump(include={*SamplingFields.model_fields}, exclude_none=True)
        if self.logit_bias is not None:
            kwargs["logit_bias"] = {int(id): value for id, value in self.logit_bias.items()}
        return kwargs


def _require_false(value: bool) -> bool:
    """Returns False; raises ValueError if the value is true."""
    if value:
        raise ValueError("the server stores nothing: leave it out, or give false")
    return value


OnlyFalse = Annotated[bool, AfterValidator(_require_false)]


class ProgressOptions(RequestModel):
    """Options of a stream: whether its first events say how far the request is."""

    include_progress: bool | None = None


class StreamOptions(ProgressOptions):
    """Options of a stream; OpenAI's others are ignored."""

    ignored_fields = make_field_table(
        any_value=("include_obfuscation",),  # padding against traffic analysis
        values_or_hint={"continuous_usage_stats": ("the last chunk has the usage", False)},
    )

    include_usage: bool | None = None


STREAM_OPTION_HINTS = {"include_usage": " (an answer that is not streamed always has its usage)"}


class StreamFields(RequestModel):
    """Whether an answer is streamed, and how."""

    stream: bool | None = None
    stream_options: ProgressOptions | None = None

    @field_validator("stream_options")
    @classmethod
    def _check_stream_options(
        cls, options: ProgressOptions | None, info: ValidationInfo
    ) -> ProgressOptions | None:
        """Raises an error for options in a request that is not streamed; else returns them."""
        if options is not None and not info.data.get("stream"):
            for name, value in options.model_dump().items():
                if value:
                    raise ValueError(
                        f'{name} is for streams, and stream is not true: give "stream": true, or leave it out'
                        f"{STREAM_OPTION_HINTS.get(name, '')}"
                    )
        return options

    @property
    def streams_progress(self) -> bool:
        """Whether the first events of the stream say how far the request is."""
        return self.stream_options is not None and bool(self.stream_options.include_progress)


class ReasoningConfig(RequestModel):
    """Options of reasoning models. This server has none, so only values that turn reasoning off are accepted."""

    ignored_fields = make_field_table(
        any_value=(
            "exclude",  # how to show reasoning
            "summary",
            "generate_summary",
            "context",
        ),
        values_or_hint={
            "effort": (REASONING_HINT, "none"),
            "enabled": (REASONING_HINT, False),
            "max_tokens": (REASONING_HINT, 0),
            "mode": (REASONING_HINT, "standard"),
        },
    )


class OpenAIRequest(SamplingFields, StreamFields):
    """Fields that OpenAI's routes share, in addition to sampling."""

    model: str
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)


class ChoicesRequest(OpenAIRequest):
    """Fields that chat completions and completions share."""

    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: TokenLimit | None = None

    @property
    def streams_usage(self) -> bool:
        """Whether the last event of the stream has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ConversationRequest(OpenAIRequest):
    """Fields that chat completions and responses share."""

    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: OnlyFalse | None = None
    reasoning: ReasoningConfig | None = None

    def conversation_kwargs(
        self, max_new_tokens: int | None, wants_logprobs: bool, response_format: ResponseFormat | None
    ) -> dict[str, Any]:
        """The fields that the request has, as keyword arguments of `Idefics.submit`.

        Args:
            max_new_tokens, wants_logprobs, response_format: the values of fields whose names differ between the routes.

        Raises:
            APIError: 400, a regular expression is given twice.
        """
        kwargs = self.sampling_kwargs() | {
            "max_new_tokens": max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            "logprobs": wants_logprobs,
            "top_logprobs": self.top_logprobs or 0,
        }
        format_kwargs = response_format.generation_kwargs if response_format else {}
        if duplicate_keys := kwargs.keys() & format_kwargs.keys():
            raise APIError(
                400,
                f"{duplicate_keys.pop()} is given twice, once as response_format: give one",
                param="response_format",
            )
        return kwargs | format_kwargs
