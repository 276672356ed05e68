"""What routes answer, for the API's description: the shapes that clients can rely on. Errors are `wiring.ErrorBody`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class NotedShape(Shape):
    """An answer; `notes` say what was not read of the pictures' files, and are left out where all was."""

    notes: list[str] = []


class CachedTokens(Shape):
    """So many tokens of the prompt had been read already, for an earlier one with the same beginning."""

    cached_tokens: int


class UsageShape(Shape):
    """What an answer has cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenShape(Shape):
    """A token, its natural-log probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class PlaceShape(TokenShape):
    """The token that was chosen in a place, and the likeliest there."""

    top_logprobs: list[TokenShape]


class PlacesShape(Shape):
    """All places of an answer."""

    content: list[PlaceShape]
    refusal: None


class ChatMessageShape(Shape):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceShape(Shape):
    """One of `n` answers."""

    index: int
    message: ChatMessageShape
    logprobs: PlacesShape | None
    finish_reason: Literal["stop", "length"]


class ChatShape(NotedShape):
    """An answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceShape]
    usage: UsageShape


class LegacyPlacesShape(Shape):
    """Lists of one length: tokens, how likely each was, the likeliest in its place, where it begins in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoiceShape(Shape):
    """One of `n` answers."""

    index: int
    text: str
    logprobs: LegacyPlacesShape | None
    finish_reason: Literal["stop", "length"]


class CompletionShape(NotedShape):
    """An answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceShape]
    usage: UsageShape


class OutputTextShape(Shape):
    """The text of a response."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[PlaceShape]


class OutputShape(Shape):
    """The one message of a response."""

    type: Literal["message"]
    id: str
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputTextShape]


class InputDetails(CachedTokens):
    """And so many had not, and are kept from now on."""

    cache_write_tokens: int


class OutputDetails(Shape):
    """Nothing is thought aside."""

    reasoning_tokens: Literal[0]


class ResponseUsageShape(Shape):
    """What a response has cost."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseShape(NotedShape):
    """An answer of `/v1/responses`: the message, and what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: dict[Literal["reason"], Literal["max_output_tokens"]] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputShape]
    parallel_tool_calls: Literal[False]
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[Literal["format"], dict[str, Any]]
    tool_choice: Literal["none"]
    tools: list[None] = Field(max_length=0)
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsageShape
    user: str | None


class TaskUsageShape(UsageShape):
    """What a task has cost."""

    pictures: int


class TaskShape(NotedShape):
    """Words about a picture."""

    object: Literal["image.task"]
    task: str
    text: str
    finish_reason: Literal["stop", "length"]
    usage: TaskUsageShape


class LabelShape(Shape):
    """One label of several: the probabilities of all add up to 1."""

    label: str
    probability: float
    logprob: float


class RankingShape(NotedShape):
    """The labels, the likeliest first."""

    object: Literal["image.task"]
    task: str
    labels: list[LabelShape]
    usage: TaskUsageShape


class ModelShape(Shape):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["idefics"]


class ModelsShape(Shape):
    """All models: there is one."""

    object: Literal["list"]
    data: list[ModelShape]


class HealthShape(Shape):
    """The process is alive."""

    status: Literal["ok"]


class ReadyShape(Shape):
    """Whether there is room."""

    status: Literal["ready", "busy"]
